"""Where generated answers end: at the first of the strings that a task stops at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.generation import RowStreams, TextStream
from memwrite.backbones.tokenizers import Tokenizer


class StopStrings(RowStreams):
    """Reads along with rows that are generated together, and ends each at its first stop string.

    It is both a streamer of `Memory.generate` and, called, a criterion that ends rows; groups come one after the other.

    Args:
        tokenizer: of the language model.
        ends: its end tokens.
        stops: the strings.
        count: number of rows.
    """

    def __init__(
        self, tokenizer: Tokenizer, ends: tuple[int, ...], stops: Sequence[str], count: int
    ) -> None:
        self._stops = stops
        self._texts = [""] * count
        self._now: Sequence[int] = range(count)
        super().__init__(
            [TextStream(tokenizer.decode, ends, self._receiver(row)) for row in range(count)]
        )

    def _receiver(self, row: int) -> Any:
        def receive(piece: str) -> None:
            self._texts[row] += piece

        return receive

    def rows(self, index: Sequence[int]) -> RowStreams:
        """Return the streamer of these rows, which are the ones to be ended from now on."""
        self._now = index
        return super().rows(index)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return (B,) bool, which of the rows have come to a stop string."""
        over = [any(stop in self._texts[row] for stop in self._stops) for row in self._now]
        return torch.tensor(over, device=input_ids.device)
