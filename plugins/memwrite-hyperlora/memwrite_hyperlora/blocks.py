"""Low-rank corrections side by side: a memory as a set of blocks of one rank each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """N blocks for each row of a batch, some of which are not there.

    Attributes:
        tensors: "A.P" (B, N, L, r, in) and "B.P" (B, N, L, r, out) for every projection P; any numbers where there is none.
        used: (B, N) bool, which are there.
    """

    tensors: Mapping[str, Tensor]
    used: Tensor

    @property
    def counts(self) -> Tensor:
        """Return how many there are in each row, (B,) int64."""
        return self.used.sum(1)

    @property
    def inner(self) -> Tensor:
        """Return the A (B, N, ·) of one projection, by which blocks are told apart."""
        return self.tensors[min(self.tensors)].flatten(2)

    def first(self, count: int) -> Blocks:
        """Return the first `count` blocks of every row."""
        return Blocks({n: t[:, :count] for n, t in self.tensors.items()}, self.used[:, :count])

    def sorted(self) -> Blocks:
        """Put them into an order that depends on nothing else, those that are not there last.

        So memories that have read the same are the same, whatever they read first.
        """
        order = self.inner[..., 0].detach().masked_fill(~self.used, torch.inf).argsort(1)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return Blocks({n: t[rows, order] for n, t in self.tensors.items()}, self.used[rows, order])

    def where(self, rows: Tensor, others: Blocks) -> Blocks:
        """Return these blocks in the rows (B,) that are True, and `others` elsewhere."""
        tensors = {
            n: t.where(rows.view(-1, *[1] * (t.ndim - 1)), others.tensors[n])
            for n, t in self.tensors.items()
        }
        return Blocks(tensors, self.used.where(rows[:, None], others.used))


def cut(tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Cut the tensors of a "lowrank" state, A.P (B, L, R, in) and B.P (B, L, out, R), into `count` blocks."""
    rows = {name: t if name[0] == "A" else t.mT for name, t in tensors.items()}
    return {
        name: t.reshape(*t.shape[:2], count, -1, t.shape[3]).transpose(1, 2)
        for name, t in rows.items()
    }


def joined(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put blocks side by side as the tensors of a "lowrank" state."""
    rows = {name: block.transpose(1, 2).flatten(2, 3) for name, block in blocks.items()}
    return {name: t if name[0] == "A" else t.mT.contiguous() for name, t in rows.items()}


def gathered(parts: Sequence[Blocks], room: int) -> Blocks:
    """Return all blocks of each row, as `room` of them.

    Where there are more, they become the `room` blocks whose sum is nearest to theirs.
    """
    names = parts[0].tensors
    tensors = {name: torch.cat([part.tensors[name] for part in parts], 1) for name in names}
    blocks = Blocks(tensors, torch.cat([part.used for part in parts], 1)).sorted()
    kept = blocks.first(room)
    over = blocks.counts > room
    return _squeezed(blocks, room).sorted().where(over, kept) if bool(over.any()) else kept


def _squeezed(blocks: Blocks, room: int) -> Blocks:
    """Return the blocks of the best approximation of Σ B A of rank room · r (Eckart and Young 1936)."""
    made = {}
    for name in [name[2:] for name in blocks.tensors if name[0] == "A"]:
        down, up = (
            blocks.tensors[f"{side}.{name}"].masked_fill(~blocks.used[..., None, None, None], 0)
            for side in "AB"
        )
        rank = room * down.shape[3]
        rows, columns = (t.transpose(1, 2).flatten(2, 3).double() for t in (down, up))
        (inputs, inner), (outputs, outer) = torch.linalg.qr(rows.mT), torch.linalg.qr(columns.mT)
        left, sizes, right = torch.linalg.svd(outer @ inner.mT, full_matrices=False)
        missing = max(rank - sizes.shape[-1], 0)
        roots = sizes[..., :rank].sqrt()
        new_up = (outputs @ left[..., :rank] * roots[..., None, :]).mT
        new_down = roots[..., None] * (right[..., :rank, :] @ inputs.mT)
        # Of ±u and ±v that with a positive sum of v, so that it is always the same one.
        sign = new_down.sum(-1, keepdim=True).sign()
        for side, new, like in (("A", new_down * sign, down), ("B", new_up * sign, up)):
            padded = torch.nn.functional.pad(new, (0, 0, 0, missing)).to(like.dtype)
            parts = padded.reshape(*padded.shape[:2], room, -1, padded.shape[3])
            made[f"{side}.{name}"] = parts.transpose(1, 2)
    return Blocks(made, torch.ones_like(blocks.used[:, :1]).expand(-1, room))


def without(blocks: Blocks, gone: Blocks, tolerance: float) -> tuple[Blocks, Tensor]:
    """Take blocks out.

    Args:
        blocks: of each row.
        gone: what is to go; each takes one block of its own with it.
        tolerance: how far a block may be from one that is to go, relative to its largest element.

    Returns:
        what is left, and in which rows (B,) all were found.
    """
    kept = blocks.used.clone()
    found = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    for row, number in gone.used.nonzero().tolist():
        sought = gone.inner[row, number]
        apart = (blocks.inner[row] - sought).abs().amax(1).masked_fill(~kept[row], torch.inf)
        nearest = int(apart.argmin())
        if float(apart[nearest]) <= tolerance * float(sought.abs().max()):
            kept[row, nearest] = False
        else:
            found[row] = False
    return replace(blocks, used=kept), found
