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
        complete: (B,) bool, whether the chunk's last slot is among those to be written.
        courses: what the rule's `courses` gives.
    """

    tokens: Mapping[str, Tensor]
    queries: Tensor | None
    real: Tensor
    complete: Tensor
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
    shift = count[:, None] if width > 1 else torch.zeros_like(count[:, None])
    chunks = -(-(length + width - 1) // width) if COUNT in state else -(-length // width)
    place = torch.arange(chunks * width, device=first.device)[None] - shift
    inside = (place >= 0) & (place < length)
    source = place.clamp(0, length - 1)
    real = inside if mask is None else inside & mask.gather(1, source)

    def laid_out(x: Tensor) -> Tensor:
        """Move (B, T, H, n) to (N, B, H, C, n)."""
        index = source[..., None, None].expand(-1, -1, *x.shape[2:])
        return torch.unflatten(x.gather(1, index), 1, (chunks, width)).permute(1, 0, 3, 2, 4)

    parts = {name: laid_out(x) for name, x in tokens.items()}
    asked = None if queries is None else laid_out(queries)
    written = torch.unflatten(real, 1, (chunks, width)).transpose(0, 1)
    # A row goes on with its chunk in the first of these, and begins a new one with each of the others.
    before = F.pad(count[None], (0, 0, 0, chunks - 1))
    after = before + written.sum(-1)
    courses = [course.unbind() for course in rule.courses(parts, written, before)]
    # Taken apart at once: an index into all chunks has a gradient as large as all of them.
    pieces = {name: torch.unbind(x) for name, x in parts.items()}
    asking = [None] * chunks if asked is None else torch.unbind(asked)
    reads, state = [], rule.begin(state)
    for i in range(chunks):
        chunk = Chunk(
            {name: x[i] for name, x in pieces.items()},
            asking[i],
            written[i],
            after[i] == rule.chunk,
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
    joined = torch.cat(reads, 1)
    back = (torch.arange(length, device=first.device)[None] + shift)[..., None, None]
    return joined.gather(1, back.expand(batch, -1, *joined.shape[2:])), state
