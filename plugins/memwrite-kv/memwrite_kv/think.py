"""ThinK (Xu et al. 2025, arXiv 2407.21018): keys of fewer channels, those that the last queries make most of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import spec_of
from memwrite_kv.candidates import Asking, Candidates
from memwrite_kv.scores.last_queries import LastQueries, LastQueriesConfig
from memwrite_kv.thin import thin_spec, thinned, widened
from memwrite_kv.turning import turned
from memwrite_kv.writer import SelectionWriter


@dataclass(frozen=True)
class ThinkConfig(LastQueriesConfig):
    """Configures ThinK behind a selection by the same queries (SnapKV); with a `ratio` of 1 all slots stay.

    Attributes:
        pruned: share of the channels of its keys that each head loses.

    Raises:
        ValueError: a value is out of range.
    """

    pruned: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruned < 1:
            raise ValueError(f"pruned must be at least 0 and below 1, got {self.pruned}")


class ThinkWriter(nn.Module):
    """Keeps the best slots, and of their keys the channels that count; values stay whole.

    A channel counts by how much it adds to the logits of the last queries, ‖Q[:, i] K[:, i]ᵀ‖ (Frobenius), over all queries
    that share a key head. Keys are taken as they stand in the cache, rotated; a model reads what they have lost as 0.
    All slots lose the same channels, those of the last tokens, too, as in kvpress.
    """

    def __init__(self, config: ThinkConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self._backbone = backbone
        width = backbone.info.head_dim
        self._kept = width - int(width * config.pruned)
        score = LastQueries(config)
        if config.bytes is not None:
            spec = spec_of(
                config,
                backbone.info,
                score.latent,
                config.used < 1,
                lambda s: thin_spec(s, self._kept),
            )
            config = replace(config, bytes=None, slots=spec.shapes["mask"][0])
        self._selection = SelectionWriter(config, backbone, score)
        self.spec = thin_spec(self._selection.spec, self._kept)
        self.reserved_positions = self._selection.reserved_positions

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states in which every slot is empty."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read the context behind what is kept, keep the best of both, and choose the channels of all anew."""
        last: list[tuple[Tensor, Asking, Tensor]] = []

        def watch(candidates: Candidates) -> None:
            asking = Asking.last(candidates.lengths, self.config.window)
            at = asking.index[:, None, :, None]
            queries = candidates.queries
            picked = queries.gather(2, at.expand(-1, queries.shape[1], -1, queries.shape[3]))
            end = candidates.positions[:, 0, candidates.old] + candidates.lengths
            last.append((picked, asking, end))

        wide = self._selection.select(widened(state), context, watch)
        channels = []
        for layer, (queries, asking, end) in enumerate(last):
            # Keys may have been moved since: what asks moves with them.
            by = (wide["next_position"] - end.long())[:, None].expand_as(asking.index)
            asks = turned(self._backbone, queries, by, layer) if bool(by.any()) else queries
            worth = counted(asks, asking.real, wide["keys"][:, layer])
            order = worth.argsort(dim=-1, descending=True, stable=True)[..., : self._kept]
            channels.append(torch.zeros_like(worth, dtype=torch.bool).scatter(-1, order, True))
        return WriteOutput(thinned(wide, torch.stack(channels, 1), self._kept))


def counted(queries: Tensor, asked: Tensor, keys: Tensor) -> Tensor:
    """Return the square of ‖Q[:, i] K[:, i]ᵀ‖ of every channel i, (B, Hkv, Dh).

    Args:
        queries: (B, H, n, Dh).
        asked: (B, n) bool, which of them are real.
        keys: (B, Hkv, M, Dh), 0 where there is no slot.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    batch, _, _, width = queries.shape
    asks = queries.to(dtype).square().masked_fill(~asked[:, None, :, None], 0)
    asks = asks.reshape(batch, keys.shape[1], -1, width).sum(2)
    return asks * keys.to(dtype).square().sum(2)
