"""Contrasted texts: one context in which every other segment is a counterexample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memwrite.memory import Memory
from memwrite.state import PackedTokens, Tokens


def contrast(memory: Memory, pairs: Sequence[tuple[str, str]]) -> Tokens:
    """Return the context (1, T) of pairs of a positive and a negative text, for `Memory.write`.

    The segments 0, 2, … are the positive texts, 1, 3, … the negative ones.
    """
    rows = [memory.backbone.encode(text) for pair in pairs for text in pair]
    ids = [token for row in rows for token in row]
    segments = [number for number, row in enumerate(rows) for _ in row]
    tokens = Tokens.from_rows([ids])
    return Tokens(tokens.ids, tokens.mask, torch.tensor([segments]))


@dataclass(frozen=True)
class Texts:
    """The texts of a batch of contexts.

    Attributes:
        tokens: (S, T), one text a row.
        row: (S,), the context that it is of.
        positive: (S,) bool.
    """

    tokens: PackedTokens
    row: Tensor
    positive: Tensor

    def sums(self, vectors: Tensor, rows: int, positive: bool) -> Tensor:
        """Add up (S, ...), those of positive or negative texts, for each of the contexts: (rows, ...)."""
        chosen = self.positive == positive
        total = vectors.new_zeros(rows, *vectors.shape[1:])
        return total.index_add(0, self.row[chosen], vectors[chosen])

    def last(self, vectors: Tensor) -> Tensor:
        """Return of (S, T, ...) what is at the last token of each text, (S, ...)."""
        places = torch.arange(len(self.row), device=self.row.device)
        return vectors[places, self.tokens.lengths - 1]


def texts_of(context: PackedTokens) -> Texts | None:
    """Take a batch of contexts (B, T) apart: a segment is a text, of which every other one is negative.

    Tokens of no segment are one positive text. None where there is no token at all.
    """
    segments = context.segments
    if segments is None:
        segments = torch.zeros_like(context.ids)
    rows, owners, signs = [], [], []
    for row in range(len(context.ids)):
        real = context.mask[row]
        for segment in sorted({*segments[row][real].tolist()}):
            rows.append(context.ids[row][real & (segments[row] == segment)].tolist())
            owners.append(row)
            signs.append(segment < 0 or segment % 2 == 0)
    if not rows:
        return None
    device = context.ids.device
    return Texts(
        Tokens.from_rows(rows, device),
        torch.tensor(owners, device=device),
        torch.tensor(signs, device=device),
    )
