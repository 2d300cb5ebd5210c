"""Built-in readers: states that are a prefix, and states that are keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from memwrite.plugins import ReaderPlugin, hookimpl
from memwrite.protocols import Backbone, Conditioning, KeyValues
from memwrite.state import MemoryState, StateSpec


@dataclass(frozen=True)
class NoParams:
    """The config of a plugin that has no parameters."""


class PrefixReader(nn.Module):
    """Prepends a `prefix` state's `memory` (M, D) to the query, as embeddings; of one with a `mask`, the real ones."""

    accepts = frozenset({"prefix"})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return the memory as a prefix."""
        mask = state.tensors.get("mask")
        lengths = None if mask is None else mask.sum(1)
        return Conditioning(prefix=state["memory"], prefix_lengths=lengths)


class KeyValueReader(nn.Module):
    """Lets the query attend to a `keyvalue` state as to its own past."""

    accepts = frozenset({"keyvalue"})

    def __init__(self, config: NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Return the state as past keys and values."""
        return Conditioning(
            key_values=KeyValues(
                state["keys"],
                state["values"],
                state["mask"],
                state["next_position"],
                state.tensors.get("bias"),
            )
        )


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the prefix and the key-value reader."""
    return [
        ReaderPlugin(
            api=2,
            name="prefix",
            summary="memory vectors before the query, as embeddings",
            config=NoParams,
            build=PrefixReader,
            accepts=PrefixReader.accepts,
        ),
        ReaderPlugin(
            api=2,
            name="key-value",
            summary="keys and values that every layer attends to",
            config=NoParams,
            build=KeyValueReader,
            accepts=KeyValueReader.accepts,
        ),
    ]
