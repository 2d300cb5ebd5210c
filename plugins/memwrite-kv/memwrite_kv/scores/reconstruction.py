"""KVzip (Kim et al. 2025, arXiv 2505.23416): the most attention that a slot receives while the context is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memwrite.protocols import Backbone, LayerActivations
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import BLOCK, Candidates, Score, Scored
from memwrite_kv.second_reading import first_reading, repeat
from memwrite_kv.writer import SelectionWriter, Take, past_of


@dataclass(frozen=True)
class ReconstructionConfig(BudgetConfig):
    """Configures KVzip.

    Attributes:
        chunk: tokens that are repeated at a time.

    Raises:
        ValueError: a value is out of range.
    """

    chunk: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")


class Reconstruction(Score):
    """The largest weight so far, over all queries of the group and all repetitions."""

    latent: ClassVar[tuple[str, ...]] = ("most",)

    def __call__(self, candidates: Candidates) -> Scored:
        most = candidates.carried["most"]
        return Scored(most, {"most": most})


class ReconstructionWriter(SelectionWriter):
    """Reads the context, then repeats it behind itself; the repetition's attention is the score."""

    def __init__(self, config: ReconstructionConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone, Reconstruction())
        self.repeated = min(config.chunk, max(backbone.info.positions // 4, 1))
        self.reserved_positions += self.repeated

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        read, scale = first_reading(self._backbone, context, past_of(state))
        most: dict[int, Tensor] = {}

        def observe(seen: LayerActivations, real: Tensor) -> None:
            with torch.no_grad():
                found = largest(seen, read.mask, real)
            most[seen.layer] = torch.maximum(found, most.get(seen.layer, found))

        repeat(self._backbone, context, read, self.repeated, observe)
        for layer in range(read.keys.shape[1]):
            keys, values = read.keys[:, layer], read.values[:, layer]
            candidates = self._candidates(layer, keys, values, keys, scale, state, context)
            carried = torch.maximum(candidates.carried["most"], most[layer])
            take(candidates, Scored(carried, {"most": carried}), None)


def largest(seen: LayerActivations, mask: Tensor, real: Tensor) -> Tensor:
    """Return the largest weight (B, Hkv, S) that any query gives to each slot of the past.

    Args:
        seen: of n tokens behind a past of S slots, which they see beside each other.
        mask: (B, S), which slots are real.
        real: (B, n), which tokens are.
    """
    slots, heads = mask.shape[1], seen.keys.shape[1]
    dtype = torch.promote_types(seen.keys.dtype, torch.float32)
    batch, _, length, width = seen.queries.shape
    queries = seen.queries.reshape(batch, heads, -1, length, width) * seen.scale
    most = seen.keys.new_zeros(batch, heads, slots, dtype=dtype)
    place = torch.arange(slots + length, device=mask.device)
    ahead = torch.cat([mask, real], 1)[:, None]
    for start in range(0, length, BLOCK):
        block = queries[..., start : start + BLOCK, :]
        logits = (block @ seen.keys[:, :, None].mT).to(dtype)
        own = slots + start + torch.arange(block.shape[3], device=mask.device)
        visible = ahead & (place <= own[:, None])
        weights = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)[..., :slots]
        weights = weights.masked_fill(~real[:, None, None, start : start + BLOCK, None], 0)
        most = torch.maximum(most, weights.amax((2, 3)))
    return most
