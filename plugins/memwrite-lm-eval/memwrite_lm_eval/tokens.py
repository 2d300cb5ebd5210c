"""Prompts as the harness tokenizes them, cut into what is written and what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from memwrite.backbones.chat import cut
from memwrite.backbones.segmentation import sentences
from memwrite.backbones.tokenizers import Tokenizer, TransformersTokenizer
from memwrite.errors import InputError
from memwrite.protocols import Granularity


class PromptTokenizer:
    """Tokenizes as the harness does with a model of transformers: special tokens that are spelled out count as such, as
    chat templates need it, and the tokenizer opens a text as it likes, unless the text begins with the opening token.

    Args:
        tokenizer: of the language model.
        granularity: of the writer; its segments are sentences or the whole context.
    """

    def __init__(self, tokenizer: Tokenizer, granularity: Granularity) -> None:
        self._tokenizer = tokenizer
        self._split = sentences if granularity == "sentence" else _whole
        self._opening = tokenizer.decode([tokenizer.bos_id])
        if isinstance(tokenizer, TransformersTokenizer):
            if not tokenizer.wrapped.is_fast:
                raise InputError(
                    "this tokenizer does not say where in a text its tokens stand, so no prompt can be cut: use a fast one"
                )
            self._opening = tokenizer.wrapped.decode([tokenizer.bos_id])

    def ids(self, text: str, opened: bool = True) -> list[int]:
        """Return the ids of a text, behind what the tokenizer itself opens one with where `opened`."""
        return [*chain.from_iterable(self._pieces(text, [text], opened))]

    def cut(self, text: str, end: int) -> tuple[list[list[int]], list[int]]:
        """Return the ids of a text's first `end` characters, in segments, and those of the rest.

        Joined they are those of the whole text. A token that reaches over the end belongs to what it begins in. The rest has
        at least one token, so that there is something to predict from: the last one of the text.
        """
        pieces = [*self._split(text[:end]), text[end:]]
        *written, asked = self._pieces(text, pieces, True)
        if not asked:
            last = next(piece for piece in reversed(written) if piece)
            asked = [last.pop()]
        return [piece for piece in written if piece], asked

    def _pieces(self, text: str, pieces: Sequence[str], opened: bool) -> list[list[int]]:
        if not isinstance(self._tokenizer, TransformersTokenizer):
            return self._tokenizer.segments(text, lambda _: [*pieces])
        begun = bool(self._opening) and text.startswith(self._opening)
        found = self._tokenizer.wrapped(
            text, add_special_tokens=opened and not begun, return_offsets_mapping=True
        )
        starts = [start for start, _ in found["offset_mapping"]]
        return cut([*zip(found["input_ids"], starts, strict=True)], pieces)


def _whole(text: str) -> list[str]:
    return [text]
