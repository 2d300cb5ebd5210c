"""The reader: kept text stands before the query, as if it were in sight."""

from __future__ import annotations

from torch import nn

from memwrite.errors import InputError
from memwrite.protocols import Backbone, Conditioning
from memwrite.state import MemoryState, StateSpec
from memwrite_text.kind import TEXT
from memwrite_text.writer import NoParams


class TextReader(nn.Module):
    """Prepends the embeddings of a `text` state's tokens to the query."""

    accepts = frozenset({TEXT.name})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._backbone = backbone

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return the embedded text as a prefix, of which each row has its own length.

        Raises:
            InputError: the ids are not the model's, or padding stands before a token.
        """
        ids, mask, size = state["ids"], state["mask"], self._backbone.info.vocab_size
        if bool(((ids < 0) | (ids >= size)).any()):
            raise InputError(
                f"this text has token ids outside 0 to {size - 1}: it was written for another model"
            )
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise InputError("in this text padding stands before a token: the state is damaged")
        return Conditioning(prefix=self._backbone.embed(ids), prefix_lengths=mask.sum(1))
