"""Built-in pairs that bracket every mechanism: no memory at all, and the full context kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from memwrite.plugins import ReaderPlugin, WriterPlugin, hookimpl
from memwrite.protocols import Backbone, Conditioning, KeyValues, Written
from memwrite.readers import NoParams
from memwrite.state import MemoryState, StateSpec, Tokens


class NoMemoryWriter(nn.Module):
    """Reads nothing, keeps nothing: the lower bound."""

    spec = StateSpec("empty", {})
    reserve = 0

    def init(self, batch_size: int, /) -> MemoryState:
        """A state without tensors."""
        return MemoryState(self.spec, {})

    def write(self, state: MemoryState, context: Tokens, /) -> Written:
        """The same state."""
        return Written(state)


class NoMemoryReader(nn.Module):
    """The model on its own."""

    accepts = frozenset({"empty"})

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Nothing."""
        return Conditioning()


class FullContextWriter(nn.Module):
    """Keeps the keys and values of the whole context, as if it stood before the query: the upper bound.

    Its state grows with the context, which `spec.bounded = False` admits.
    """

    reserve = 0

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone
        info = backbone.info
        self.spec = StateSpec(
            "keyvalue", self._shapes(0), tuple(range(info.layers)), info.dtype, False
        )

    def _shapes(self, slots: int) -> dict[str, tuple[int, ...]]:
        info = self._backbone.info
        shape = (info.layers, info.kv_heads, slots, info.head_dim)
        return {"keys": shape, "values": shape, "mask": (slots,), "next_position": ()}

    def init(self, batch_size: int, /) -> MemoryState:
        """Keys and values of no token at all."""
        device = self._backbone.info.device
        return MemoryState(
            self.spec,
            {
                name: torch.zeros(batch_size, *shape, dtype=self.spec.dtype_of(name), device=device)
                for name, shape in self.spec.shapes.items()
            },
        )

    def write(self, state: MemoryState, context: Tokens, /) -> Written:
        """Run the context behind what is there, and keep its keys and values too.

        Raises:
            InputError: together they are longer than the model's positions.
        """
        context = context.packed()
        if not context.mask.any():
            return Written(state)
        names = ("keys", "values", "mask", "next_position")
        past = KeyValues(*(state[name] for name in names))
        embeddings = self._backbone.embed(context.ids)
        kept = self._backbone.forward(
            embeddings, past=past if past.mask.shape[1] else None, keep=True
        ).key_values
        assert kept is not None
        mask = torch.cat([past.mask, context.mask], 1)
        tensors = (kept.keys, kept.values, mask, past.next_position + context.lengths)
        spec = replace(self.spec, shapes=self._shapes(mask.shape[1]))
        return Written(MemoryState(spec, dict(zip(names, tensors, strict=True))))


def _build_no_memory(config: NoParams, backbone: Backbone) -> NoMemoryWriter:
    return NoMemoryWriter()


def _build_no_memory_reader(
    config: NoParams, backbone: Backbone, spec: StateSpec
) -> NoMemoryReader:
    return NoMemoryReader()


def _build_full_context(config: NoParams, backbone: Backbone) -> FullContextWriter:
    return FullContextWriter(backbone)


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """No memory, and the full context."""
    return [
        WriterPlugin(
            api=1,
            name="no-memory",
            summary="baseline: keeps nothing (lower bound)",
            config=NoParams,
            build=_build_no_memory,
            emits="empty",
        ),
        WriterPlugin(
            api=1,
            name="full-context",
            summary="baseline: keeps the whole KV cache (upper bound)",
            config=NoParams,
            build=_build_full_context,
            emits="keyvalue",
        ),
    ]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """The reader of the empty state."""
    return [
        ReaderPlugin(
            api=1,
            name="no-memory",
            summary="baseline: the model on its own",
            config=NoParams,
            build=_build_no_memory_reader,
            accepts=NoMemoryReader.accepts,
        )
    ]
