"""Key-value steering: what positive texts leave in the cache more than negative ones, added once, at one position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.modules.layers import chosen_layers
from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec
from memwrite_steering.config import SteeredCacheConfig
from memwrite_steering.contrast import Texts, texts_of

_SIGNS = ("positive", "negative")


class SteeredCacheWriter(nn.Module):
    """Keeps one slot of keys and values: those of the token that opens a text, moved from negative to positive texts.

    KV cache steering (Belitsky et al. 2025, arXiv 2507.08799): K + c_k ΔK and V + c_v ΔV at one position, ΔK and ΔV being
    differences of means at the last tokens of contrasted texts. The paper changes the last token of the prompt; a memory
    that is to serve every question changes the one before it. Keys are averaged without their positions.

    Args:
        config: see `SteeredCacheConfig`.
        backbone: the model that reads; never changed.

    Raises:
        ConfigError: the model has recurrent layers, which no single position stands before.
    """

    reserved_positions = 0

    def __init__(self, config: SteeredCacheConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        if backbone.recurrent:
            raise ConfigError(
                f"'{info.architecture}' has recurrent layers, which no cache of one position can steer: take the writer "
                f"steering"
            )
        self.config = config
        self._backbone = backbone
        layers = chosen_layers((), info)
        slot = (info.layers, info.kv_heads, 1, info.head_dim)
        part = (info.layers, info.kv_heads, info.head_dim)
        shapes: dict[str, tuple[int, ...]] = {
            "keys": slot,
            "values": slot,
            "mask": (1,),
            "next_position": (),
        }
        for sign in _SIGNS:
            shapes |= {f"latent.{sign}_{name}": part for name in ("keys", "values")}
            shapes[f"latent.{sign}s"] = ()
        self.spec = StateSpec("keyvalue", shapes, layers, info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states without a slot in use."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add what the texts of the context leave in the cache, and steer the slot by it."""
        texts = texts_of(context)
        if texts is None:
            return WriteOutput(state)
        rows, tensors = len(context.ids), dict(state.tensors)
        keys, values = self._last(texts)
        ones = torch.ones_like(values[:, 0, 0, 0])
        for sign in _SIGNS:
            for name, tensor in (("_keys", keys), ("_values", values), ("s", ones)):
                latent = f"latent.{sign}{name}"
                tensors[latent] = tensors[latent] + texts.sums(tensor, rows, sign == "positive")
        return WriteOutput(self._steered(tensors))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add what both have read, and steer the slot by it."""
        sums = {n: t + second[n] for n, t in first.tensors.items() if n.startswith("latent.")}
        return self._steered({**first.tensors, **sums})

    def _last(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Return keys as at position 0 and values (S, L, Hkv, Dh) at the last token of each text."""
        tokens = texts.tokens
        cache = self._backbone.forward(
            self._backbone.embed(tokens.ids), lengths=tokens.lengths, use_cache=True
        ).key_values
        assert cache is not None
        keys, values = (texts.last(t.permute(0, 3, 1, 2, 4)) for t in (cache.keys, cache.values))
        places = 1 - tokens.lengths[:, None]
        keys = moved(self._backbone, keys[:, :, :, None], places)[:, :, :, 0]
        return keys.to(self.spec.dtype), values.to(self.spec.dtype)

    def _steered(self, tensors: dict[str, Tensor]) -> MemoryState:
        """Return the state whose slot the sums steer."""
        counts = [tensors[f"latent.{sign}s"] for sign in _SIGNS]
        begun = counts[0] + counts[1] > 0
        opening = torch.tensor([[self._backbone.info.bos_id]], device=begun.device)
        cache = self._backbone.forward(self._backbone.embed(opening), use_cache=True).key_values
        assert cache is not None
        for name, factor in (("keys", self.config.keys), ("values", self.config.values)):
            means = [
                tensors[f"latent.{sign}_{name}"] / count.clamp(min=1)[:, None, None, None]
                for sign, count in zip(_SIGNS, counts, strict=True)
            ]
            slot = getattr(cache, name) + factor * (means[0] - means[1])[..., None, :]
            slot = slot * begun[:, None, None, None, None]
            tensors[name] = slot.to(self.spec.dtype)
        tensors |= {"mask": begun[:, None], "next_position": begun.long()}
        return MemoryState(self.spec, tensors)
