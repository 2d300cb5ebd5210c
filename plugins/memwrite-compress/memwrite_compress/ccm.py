"""Compressed context memory, CCM (Kim et al. 2023, arXiv 2312.03414)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memwrite.errors import ConfigError
from memwrite.protocols import Backbone
from memwrite.state import MemoryState, TensorSpec
from memwrite_compress.config import CompressionConfig, at_least
from memwrite_compress.key_values import KeyValueCompressor
from memwrite_compress.tokens import newest, slots_of


@dataclass(frozen=True)
class CcmConfig(CompressionConfig):
    """Configures what both forms of CCM share.

    Attributes:
        rank: of the LoRA, which acts on compression tokens alone.
        recurrent: whether a segment sees the memory of those before; else it is compressed by itself.
    """

    rank: int = 8
    recurrent: bool = True


@dataclass(frozen=True)
class CcmConcatConfig(CcmConfig):
    """Configures CCM-concat.

    Attributes:
        keep: segments that a state has room for, the last ones; with None it keeps all, and grows.
    """

    keep: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "keep")


@dataclass(frozen=True)
class CcmMergeConfig(CcmConfig):
    """Configures CCM-merge.

    Attributes:
        unrotate: move the memory's keys to the places of the new ones before both are averaged; the authors average keys
            as they stand, rotated to different places.
    """

    unrotate: bool = True


class _Ccm(KeyValueCompressor):
    """Compresses with a LoRA that ordinary tokens do not have. Compression tokens stand at positions that follow the
    segment, and the text behind them begins at the first of these again.
    """

    conditional = True
    counted = False

    def __init__(self, config: CcmConfig, backbone: Backbone) -> None:
        self.recurrent = config.recurrent
        super().__init__(config, backbone)


class CcmConcatWriter(_Ccm):
    """Keeps the key-values of each segment's tokens side by side: Mem(t) = [Mem(t − 1); h(t)]."""

    def __init__(self, config: CcmConcatConfig, backbone: Backbone) -> None:
        self._keep = config.keep
        super().__init__(config, backbone)

    @property
    def capacity(self) -> int:
        """The number of slots of a state, or of an empty one that grows."""
        return self.config.slots * (self._keep or 0)

    @property
    def bounded(self) -> bool:
        """Whether there is a most number of segments."""
        return self._keep is not None

    def _joined(self, state: MemoryState, new: dict[str, Tensor], read: Tensor) -> MemoryState:
        mask = torch.cat([state["mask"], new["mask"] & read[:, None]], 1)
        order, kept = newest(mask, self.capacity if self.bounded else None)
        tensors = {"mask": kept}
        for name in ("keys", "values"):
            both = torch.cat([state[name], new[name]], 3)
            tensors[name] = slots_of(both, order) * kept[:, None, None, :, None]
        places = torch.cat([state["latent.position"], new["latent.position"]], 1)
        tensors["latent.position"] = places.gather(1, order) * kept
        ends = torch.where(read, new["next_position"], state["next_position"])
        spec = self._spec(kept.shape[1], self.bounded)
        return MemoryState(spec, {**tensors, "next_position": ends})


class CcmMergeWriter(_Ccm):
    """Keeps the mean of all segments' key-values, place by place: Mem(t) = (1 − 1/t) Mem(t − 1) + h(t)/t.

    The mean stands at the places of the last segment's tokens.
    """

    latent: ClassVar[Mapping[str, TensorSpec]] = {
        "latent.segments": TensorSpec((), torch.int64, per_layer=False)
    }

    def __init__(self, config: CcmMergeConfig, backbone: Backbone) -> None:
        self._unrotate = config.unrotate
        super().__init__(config, backbone)

    def _joined(self, state: MemoryState, new: dict[str, Tensor], read: Tensor) -> MemoryState:
        count = state["latent.segments"] + 1
        share = 1 / count.to(self.spec.dtype)[:, None, None, None, None]
        keys = state["keys"]
        if self._unrotate:
            keys = self._moved(keys, new["latent.position"] - state["latent.position"])
        merged = {
            **new,
            "keys": keys + (new["keys"] - keys) * share,
            "values": state["values"] + (new["values"] - state["values"]) * share,
            "latent.segments": count,
        }
        return MemoryState(self.spec, merged).where(read, state)

    def _moved(self, keys: Tensor, by: Tensor) -> Tensor:
        """Move keys by (B, m) positions; they stay where positions are no rotations."""
        try:
            return self._backbone.rotate(keys, by)
        except ConfigError:
            return keys
