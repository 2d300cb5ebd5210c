"""The two forms of a descended memory: keys and values of every layer, or vectors before the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone, Conditioning, KeyValues
from memwrite.state import MemoryState, StateSpec


class Form(Protocol):
    """How tokens become a state, which of its numbers are descended, and how it enters the model."""

    @property
    def moved(self) -> Mapping[str, float]:
        """The names of the tensors that are descended, with the share of the step size that each moves by."""
        ...

    def spec(self) -> StateSpec: ...

    def of_tokens(self, ids: Tensor, lengths: Tensor) -> MemoryState:
        """Return the state that consists of tokens (B, M), the first `lengths` (B,) of which are real."""
        ...

    def movable(self, state: MemoryState) -> Tensor:
        """Return what of each of the `moved` tensors may move, as bool that fits them."""
        ...

    def condition(self, state: MemoryState) -> Conditioning: ...


class KeyValueForm:
    """Keys and values of M slots in every layer, at positions 0 to M - 1 (Cartridges).

    Args:
        backbone: the model.
        slots: M.
        frozen_sink: leave the first slot as it is.
    """

    #: A key decides in an exponent who reads its slot, so it is moved with more care.
    moved: Mapping[str, float] = {"keys": 0.1, "values": 1.0}

    def __init__(self, backbone: Backbone, slots: int, frozen_sink: bool) -> None:
        self._backbone, self._slots, self._frozen_sink = backbone, slots, frozen_sink

    def spec(self) -> StateSpec:
        """Return the spec of M slots in every layer."""
        info = self._backbone.info
        shape = (info.layers, info.kv_heads, self._slots, info.head_dim)
        return StateSpec(
            "keyvalue",
            {"keys": shape, "values": shape, "mask": (self._slots,), "next_position": ()},
            layers=tuple(range(info.layers)),
            dtype=info.state_dtype,
        )

    def of_tokens(self, ids: Tensor, lengths: Tensor) -> MemoryState:
        """Return the keys and values that the model has of the tokens; slots without a real one are masked."""
        made = self._backbone.forward(self._backbone.embed(ids), lengths=lengths, use_cache=True)
        kept, spec = made.key_values, self.spec()
        assert kept is not None
        names = {"keys": kept.keys.to(spec.dtype), "values": kept.values.to(spec.dtype)}
        return MemoryState(spec, {**names, "mask": kept.mask, "next_position": kept.next_position})

    def movable(self, state: MemoryState) -> Tensor:
        """Return (B, 1, 1, M, 1): real slots, without the first where that is frozen."""
        real = state["mask"].clone()
        if self._frozen_sink:
            real[:, 0] = False
        return real[:, None, None, :, None]

    def condition(self, state: MemoryState) -> Conditioning:
        """Let the text attend to the keys and values as to its past."""
        return Conditioning(
            key_values=KeyValues(
                state["keys"],
                state["values"],
                state["mask"],
                state["next_position"],
                state.tensors.get("bias"),
            )
        )


class PrefixForm:
    """M vectors that stand before the text as embeddings.

    Args:
        backbone: the model.
        slots: M.
    """

    moved: Mapping[str, float] = {"memory": 1.0}

    def __init__(self, backbone: Backbone, slots: int) -> None:
        self._backbone, self._slots = backbone, slots

    def spec(self) -> StateSpec:
        """Return the spec of M vectors."""
        info = self._backbone.info
        return StateSpec(
            "prefix", {"memory": (self._slots, info.hidden_size)}, dtype=info.state_dtype
        )

    def of_tokens(self, ids: Tensor, lengths: Tensor) -> MemoryState:
        """Return the embeddings of the tokens, whether they are real or repeat these."""
        spec = self.spec()
        return MemoryState(spec, {"memory": self._backbone.embed(ids).to(spec.dtype)})

    def movable(self, state: MemoryState) -> Tensor:
        """Return (1, 1, 1): all of them."""
        return torch.ones(1, 1, 1, dtype=torch.bool, device=state["memory"].device)

    def condition(self, state: MemoryState) -> Conditioning:
        """Put the vectors before the text."""
        return Conditioning(prefix=state["memory"])


def predictions(backbone: Backbone, memory: Conditioning | None, embeddings: Tensor) -> Tensor:
    """Return the hidden states (B, T - 1, D) from which the second to last token of texts (B, T, D) are predicted.

    Args:
        backbone: the model.
        memory: what stands before the texts, B rows; None for nothing.
        embeddings: of the texts.
    """
    prefix = None if memory is None else memory.prefix
    past = None if memory is None else memory.key_values
    start = 0
    if prefix is not None:
        start = prefix.shape[1]
        embeddings = torch.cat([prefix.to(embeddings.dtype), embeddings], 1)
    return backbone.forward(embeddings, past=past).hidden[:, start:-1]


def padded(ids: Tensor, width: int) -> Tensor:
    """Return ids (B, T) with zeros up to `width`, or cut to it."""
    return F.pad(ids[:, :width], (0, max(0, width - ids.shape[1])))
