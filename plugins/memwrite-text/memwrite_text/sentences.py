"""Where sentences begin in token ids, without their text."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from memwrite.errors import InputError
from memwrite.protocols import Backbone

_STOPS = (
    ".",
    "!",
    "?",
    "…",
    "。",
    "！",
    "？",
    "\n",
    "\n\n",
    ".\n",
    ".\n\n",
    '."',
    ".”",
    ".)",
    "?”",
    "!”",
    '?"',
    '!"',
)


class SentenceNumbers(nn.Module):
    """Numbers the sentences of token ids.

    A sentence ends with a token that is a stop or a line break; a further stop, or a digit as in 3.5, does not begin
    the next. An abbreviation does end one. Which tokens these are is asked of the tokenizer once.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        stops = _ids_of(backbone, _STOPS)
        size = backbone.info.vocab_size
        self.register_buffer("ends", _table(size, stops), persistent=False)
        within = stops | _ids_of(backbone, "0123456789")
        self.register_buffer("within", _table(size, within), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the number of each id's sentence, from 0, for ids (B, T)."""
        ends, within = self.ends[ids], self.within[ids]  # type: ignore[index]
        begins = torch.zeros_like(ids)
        begins[:, 1:] = ends[:, :-1] & ~within[:, 1:]
        return begins.cumsum(1)


def _table(size: int, ids: set[int]) -> Tensor:
    table = torch.zeros(size, dtype=torch.bool)
    table[sorted(ids)] = True
    return table


def _ids_of(backbone: Backbone, pieces: Iterable[str]) -> set[int]:
    """Return the ids of those pieces that are one token behind a letter."""
    found = set()
    for piece in pieces:
        try:
            letter, both = backbone.encode("a"), backbone.encode("a" + piece)
        except InputError:  # the tokenizer does not know the character
            continue
        if both[:-1] == letter:
            found.add(both[-1])
    return found
