"""The writers: the last tokens of what was written, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, Tokens
from memwrite_text.kind import text_spec, text_state
from memwrite_text.sentences import SentenceNumbers


@dataclass(frozen=True)
class NoParams:
    """The config of a plugin that has no parameters."""


@dataclass(frozen=True)
class LastTokensConfig:
    """Configures `last-tokens`.

    Attributes:
        tokens: how many of the last tokens are kept.

    Raises:
        ValueError: it is below 1.
    """

    tokens: int = 256

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")


class TextWriter(nn.Module):
    """Keeps the text itself. It does not remove the context, so it is a baseline and no memory.

    Args:
        backbone: its tokenizer tells where sentences end.
        tokens: how many of the last tokens are kept; None for all, in a state that grows.
    """

    reserved_positions = 0

    def __init__(self, backbone: Backbone, tokens: int | None) -> None:
        super().__init__()
        self._tokens, self._device = tokens, backbone.info.device
        self.spec = text_spec(tokens or 0, bounded=tokens is not None)
        self.sentences = SentenceNumbers(backbone).to(self._device)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return texts of no tokens."""
        return self.spec.zeros(batch_size, self._device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Put the context behind what is there; sentences are found in the ids, whatever segments are given."""
        both = Tokens(
            torch.cat([state["ids"], context.ids], 1), torch.cat([state["mask"], context.mask], 1)
        ).packed()
        if self._tokens is not None:
            both = _last(both, self._tokens)
        spec = text_spec(both.ids.shape[1], bounded=self._tokens is not None)
        return WriteOutput(text_state(spec, both, self.sentences(both.ids)))


def _last(tokens: PackedTokens, count: int) -> PackedTokens:
    """Return the last `count` real tokens of each row, with padding behind where there are fewer."""
    place = torch.arange(count, device=tokens.ids.device)
    index = (tokens.lengths[:, None] - count).clamp(min=0) + place
    real = index < tokens.lengths[:, None]
    padded = nn.functional.pad(tokens.ids, (0, 1))
    return PackedTokens(padded.gather(1, index.clamp(max=tokens.ids.shape[1])), real)
