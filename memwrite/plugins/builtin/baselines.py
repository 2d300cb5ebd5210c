"""Baselines that bracket every mechanism: no memory at all, and the keys and values of the full context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from memwrite.plugins import ReaderPlugin, WriterPlugin, hookimpl
from memwrite.plugins.builtin.readers import NoParams
from memwrite.protocols import Backbone, Conditioning, KeyValues, WriteOutput
from memwrite.state import MemoryState, PackedTokens, StateSpec


class NoMemoryWriter(nn.Module):
    """Keeps nothing: the lower bound."""

    spec = StateSpec("empty", {})
    reserved_positions = 0

    def __init__(self, config: NoParams, backbone: Backbone) -> None:
        super().__init__()

    def init(self, batch_size: int, /) -> MemoryState:
        """Return a state without tensors."""
        return MemoryState(self.spec, {})

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Return the same state."""
        return WriteOutput(state)


class NoMemoryReader(nn.Module):
    """The model on its own."""

    accepts = frozenset({"empty"})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return a conditioning that changes nothing."""
        return Conditioning()


class FullContextWriter(nn.Module):
    """Keeps the keys and values of the whole context, as if it stood before the query: the upper bound.

    Its state grows with the context, so `spec.bounded` is False.
    """

    reserved_positions = 0

    def __init__(self, config: NoParams, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone
        self.spec = self._spec(0)

    def _spec(self, slots: int) -> StateSpec:
        info = self._backbone.info
        shape = (info.layers, info.kv_heads, slots, info.head_dim)
        return StateSpec(
            "keyvalue",
            {"keys": shape, "values": shape, "mask": (slots,), "next_position": ()},
            layers=tuple(range(info.layers)),
            dtype=info.dtype,
            bounded=False,
        )

    def init(self, batch_size: int, /) -> MemoryState:
        """Return a state of no slots."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Run the context behind what is there, and keep its keys and values too.

        Raises:
            InputError: together they are longer than the model's positions.
        """
        if not context.mask.any():
            return WriteOutput(state)
        names = ("keys", "values", "mask", "next_position")
        past = KeyValues(state["keys"], state["values"], state["mask"], state["next_position"])
        embeddings = self._backbone.embed(context.ids)
        cache = self._backbone.forward(
            embeddings,
            past=past if past.mask.shape[1] else None,
            lengths=context.lengths,
            use_cache=True,
        ).key_values
        assert cache is not None
        mask = torch.cat([past.mask, context.mask], 1)
        tensors = (cache.keys, cache.values, mask, past.next_position + context.lengths)
        spec = self._spec(mask.shape[1])
        return WriteOutput(MemoryState(spec, dict(zip(names, tensors, strict=True))))


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers that keep nothing and everything."""
    return [
        WriterPlugin(
            api=2,
            name="no-memory",
            summary="baseline: keeps nothing (lower bound)",
            config=NoParams,
            build=NoMemoryWriter,
            emits="empty",
        ),
        WriterPlugin(
            api=2,
            name="full-context",
            summary="baseline: keeps the whole KV cache (upper bound)",
            config=NoParams,
            build=FullContextWriter,
            emits="keyvalue",
        ),
    ]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the reader of the empty state."""
    return [
        ReaderPlugin(
            api=2,
            name="no-memory",
            summary="baseline: the model on its own",
            config=NoParams,
            build=NoMemoryReader,
            accepts=NoMemoryReader.accepts,
        )
    ]
