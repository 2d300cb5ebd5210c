"""Linear attention via orthogonal memory (LAVO, Zhang et al. 2023, arXiv 2312.11135): the mean of all that was read, along fixed directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError, InputError
from memwrite.modules.layers import chosen_layers
from memwrite.modules.positions import moved
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec, TensorSpec

_SUMS = {"keys": "latent.keys", "values": "latent.values"}


@dataclass(frozen=True)
class LavoConfig:
    """Configures orthogonal memory.

    Attributes:
        slots: r, directions; at most the width of a head.
        seed: of the directions.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")


def directions(count: int, width: int, seed: int) -> Tensor:
    """Return orthonormal directions (count, width) in float64, uniformly at random by the seed."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, count, generator=generator, dtype=torch.float64)
    found, upper = torch.linalg.qr(drawn)
    signed: Tensor = found * upper.diagonal().sign()
    return signed.mT


class LavoWriter(nn.Module):
    """Keeps the mean key and the mean value of each head, taken apart along r directions b: slot i holds ⟨bᵢ, mean⟩ bᵢ.

    A `MergingWriter` and a `DeletingWriter`: contexts are read by themselves and add to sums. The slots stand at position 0,
    and keys are averaged as at position 0.

    Args:
        config: see `LavoConfig`.
        backbone: the model that reads; never changed.

    Raises:
        ConfigError: there are more directions than a head is wide, or the model has recurrent layers.
    """

    reserved_positions = 0

    def __init__(self, config: LavoConfig, backbone: Backbone) -> None:
        super().__init__()
        info = backbone.info
        if backbone.recurrent:
            raise ConfigError(
                f"'{info.architecture}' has recurrent layers, which have no keys and values: take the writer native-state"
            )
        layers = chosen_layers((), info)
        if config.slots > info.head_dim:
            raise ConfigError(
                f"writer.params.slots = {config.slots}, but heads of the width {info.head_dim} have no more orthogonal "
                f"directions than that"
            )
        self._backbone = backbone
        self._config = config
        sums = TensorSpec((info.layers, info.kv_heads, config.slots))
        slots = TensorSpec((*sums.shape, info.head_dim))
        tensors: dict[str, TensorSpec | tuple[int, ...]] = {
            "keys": slots, "values": slots, "mask": (config.slots,), "next_position": (),
            "latent.keys": sums, "latent.values": sums,
            "latent.tokens": TensorSpec((), torch.int64, per_layer=False),
        }  # fmt: skip
        self.spec = StateSpec("keyvalue", tensors, layers, info.state_dtype)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states without a slot in use."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Add what the tokens of `context` leave in the cache."""
        return WriteOutput(self._plus(state, self._sums(context)))

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Subtract what the tokens of `context` leave in the cache.

        Raises:
            InputError: the state has read fewer tokens; that it has read others does not show.
        """
        sums = self._sums(context)
        if bool((sums["latent.tokens"] > state["latent.tokens"]).any()):
            raise InputError("a memory has not read this context: it has read fewer tokens")
        return WriteOutput(self._plus(state, {name: -tensor for name, tensor in sums.items()}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Add the sums."""
        return self._plus(first, second.tensors)

    def _directions(self, device: torch.device) -> Tensor:
        """Return the directions (r, Dh) in float64."""
        width = self._backbone.info.head_dim
        return directions(self._config.slots, width, self._config.seed).to(device)

    def _sums(self, context: PackedTokens) -> dict[str, Tensor]:
        """Return the sums of a context's keys and values along the directions, (B, L, Hkv, r), and of its tokens (B,)."""
        cache = self._backbone.forward(
            self._backbone.embed(context.ids), lengths=context.lengths, use_cache=True
        ).key_values
        assert cache is not None
        places = torch.arange(context.ids.shape[1], device=context.ids.device)
        keys = moved(self._backbone, cache.keys, -places.expand(context.ids.shape))
        base = self._directions(keys.device)
        real = context.mask[:, None, None, :, None]
        sums = {
            _SUMS[name]: (part.double() * real).sum(3) @ base.mT
            for name, part in (("keys", keys), ("values", cache.values))
        }
        return {**sums, "latent.tokens": context.lengths}

    def _plus(self, state: MemoryState, sums: Mapping[str, Tensor]) -> MemoryState:
        """Return the state with these added to its own sums, and the slots that they make."""
        tensors = dict(state.tensors)
        tokens = tensors["latent.tokens"] + sums["latent.tokens"]
        begun = tokens > 0
        base = self._directions(tokens.device)
        for name, latent in _SUMS.items():
            total = (tensors[latent].double() + sums[latent].double()) * begun[:, None, None, None]
            mean = total / tokens.clamp(min=1)[:, None, None, None]
            tensors[latent] = total.to(self.spec.dtype)
            tensors[name] = (mean[..., None] * base).to(self.spec.dtype)
        tensors |= {
            "latent.tokens": tokens,
            "mask": begun[:, None].expand_as(tensors["mask"]).clone(),
            "next_position": begun.long(),
        }
        return replace(state, tensors=tensors)
