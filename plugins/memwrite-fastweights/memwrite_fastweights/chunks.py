"""The scan: tokens are laid out in chunks that begin where a row's unfinished chunk broke off, and written chunk by chunk.

Gradients of a chunk are taken at the weights from its start, so its tokens can be handled at once. Rows may have
unfinished chunks of different lengths: each row's tokens are moved behind the slots of its chunk that are already written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite_fastweights.rank_one import Course

#: One layer's tensors of a state, (B, ...) by name.
Layer = Mapping[str, Tensor]

#: The name of the (B,) int64 number of tokens in the unfinished chunk.
COUNT = "latent.count"


@dataclass(frozen=True)
class Chunk:
    """C slots of a chunk, some of which hold a token.

    Attributes:
        tokens: what is written, name -> (B, H, C, n).
        queries: (B, H, C, Dk), or None where nobody reads.
        real: (B, C) bool, True where a slot holds a token that is yet to be written.
        complete: (B,) bool, whether the chunk's last slot is among those to be written; or one bool for all rows.
        courses: what the rule's `courses` gives.
    """

    tokens: Mapping[str, Tensor]
    queries: Tensor | None
    real: Tensor
    complete: Tensor | bool
    courses: Sequence[Course]


class Rule(Protocol):
    """How tokens change weights."""

    @property
    def chunk(self) -> int:
        """Return the number of tokens whose gradients are taken at the same weights."""
        ...

    def begin(self, state: Layer) -> Layer:
        """Return what `write` works on, of the tensors of a state."""
        ...

    def courses(
        self, tokens: Mapping[str, Tensor], real: Tensor, count: Tensor
    ) -> Sequence[Course]:
        """Return how weights go through all N chunks, as far as that does not depend on them.

        Args:
            tokens: name -> (N, B, H, C, n).
            real: (N, B, C) bool, True where a slot holds a token that is yet to be written.
            count: (N, B) int64, the number of each chunk's tokens that were written before.
        """
        ...

    def write(self, state: Layer, chunk: Chunk) -> tuple[Tensor | None, Layer]:
        """Return the reads (B, H, C, Dv) before each token, or None without queries, and the state after the chunk."""
        ...

    def finish(self, state: Layer, count: Tensor) -> Layer:
        """Return the tensors of a state whose last chunk has `count` (B,) tokens; 0 where that is a new one."""
        ...


def scan(
    rule: Rule,
    tokens: Mapping[str, Tensor],
    queries: Tensor | None,
    state: Layer,
    mask: Tensor | None = None,
) -> tuple[Tensor | None, Layer]:
    """Write T tokens, and read before each; every row and head on its own.

    Args:
        rule: how they are written.
        tokens: name -> (B, T, H, n).
        queries: (B, T, H, Dk), or None to write only.
        state: one layer's tensors; not changed. Without a count every chunk begins with the first token, as with chunks
            of one.
        mask: (B, T) bool, True where a token is real; real ones come first. None where all of them are.

    Returns:
        Reads (B, T, H, Dv), or None without queries, and the new tensors.
    """
    first = next(iter(tokens.values()))
    batch, length = first.shape[:2]
    count = state[COUNT] if COUNT in state else first.new_zeros(batch, dtype=torch.long)
    # A single token, as text is generated, takes a chunk of one slot.
    width = rule.chunk if length > 1 else 1
    place = _Layout(count if width > 1 else torch.zeros_like(count), length, width)
    real = first.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
    parts = {name: place.out(x).transpose(2, 3) for name, x in tokens.items()}
    asked = None if queries is None else place.out(queries).transpose(2, 3)
    written, chunks = place.out(real), place.chunks
    # A row goes on with its chunk in the first of these, and begins a new one with each of the others.
    before = F.pad(count[None], (0, 0, 0, chunks - 1))
    after = before + written.sum(-1)
    courses = [course.unbind() for course in rule.courses(parts, written, before)]
    # Taken apart at once: an index into all chunks has a gradient as large as all of them.
    pieces = {name: torch.unbind(x) for name, x in parts.items()}
    asking = [None] * chunks if asked is None else torch.unbind(asked)
    full = after == rule.chunk
    every, some = full.all(1).tolist(), full.any(1).tolist()
    reads, state = [], rule.begin(state)
    for i in range(chunks):
        chunk = Chunk(
            {name: x[i] for name, x in pieces.items()},
            asking[i],
            written[i],
            every[i] if every[i] == some[i] else full[i],
            [course[i] for course in courses],
        )
        read, state = rule.write(state, chunk)
        reads += [] if read is None else [read.transpose(1, 2)]
    count = after.sum(0) % rule.chunk
    state = dict(rule.finish(state, count))
    if COUNT in state:
        state[COUNT] = count
    if queries is None:
        return None, state
    return place.back(torch.cat(reads, 1)), state


class _Layout:
    """Where tokens lie in chunks.

    Args:
        count: (B,) int64, slots of its first chunk that each row has written before.
        length: T.
        width: C.

    Attributes:
        chunks: N.
    """

    def __init__(self, count: Tensor, length: int, width: int) -> None:
        least, most = (int(count.min()), int(count.max())) if len(count) else (0, 0)
        self.chunks = -(-(length + most) // width)
        self._length, self._width, self._shift = length, width, most
        self._count = None if least == most else count[:, None]

    def out(self, x: Tensor) -> Tensor:
        """Move (B, T, ...) to (N, B, C, ...), with zeros in slots without a token."""
        slots = self.chunks * self._width
        if self._count is None:
            behind = slots - self._length - self._shift
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (self._shift, behind))
        else:
            place = torch.arange(slots, device=x.device) - self._count
            inside = _like(x, (place >= 0) & (place < self._length))
            source = _like(x, place.clamp(0, self._length - 1)).expand(-1, -1, *x.shape[2:])
            x = x.gather(1, source).masked_fill(~inside, 0)
        return torch.unflatten(x, 1, (self.chunks, self._width)).transpose(0, 1)

    def back(self, x: Tensor) -> Tensor:
        """Return the T tokens of (B, N·C, ...)."""
        if self._count is None:
            return x[:, self._shift : self._shift + self._length]
        place = torch.arange(self._length, device=x.device) + self._count
        return x.gather(1, _like(x, place).expand(-1, -1, *x.shape[2:]))


def _like(x: Tensor, places: Tensor) -> Tensor:
    """Give (B, T) as many axes as x (B, ...) has."""
    return places.reshape(*places.shape, *[1] * (x.ndim - 2))


def chosen(rows: Tensor | bool, one: Tensor, other: Tensor) -> Tensor:
    """Take `one` in the rows (B,) that are True, `other` elsewhere; or one of them whole."""
    if isinstance(rows, bool):
        return one if rows else other
    return torch.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)
