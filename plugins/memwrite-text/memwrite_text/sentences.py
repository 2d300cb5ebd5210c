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
        info = backbone.info
        special = {info.bos_id, info.eos_id, *info.end_ids}
        ends = _ids_of(backbone, _STOPS) | special
        for name, ids in (
            ("special", special),
            ("ends", ends),
            ("within", ends | _ids_of(backbone, "0123456789")),
        ):
            self.register_buffer(name, _table(info.vocab_size, ids), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the number of each id's sentence for ids (B, T), in order; -1 for those that open or close a text."""
        special, ends, within = (self.get_buffer(n)[ids] for n in ("special", "ends", "within"))
        begins = torch.zeros_like(ids)
        begins[:, 1:] = ends[:, :-1] & ~within[:, 1:]
        return begins.cumsum(1).masked_fill(special, -1)


def _table(size: int, ids: set[int]) -> Tensor:
    table = torch.zeros(size, dtype=torch.bool)
    table[sorted(i for i in ids if 0 <= i < size)] = True
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
