"""The smallest writer and reader of each shared kind of state, so that an author needs no other plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.inference import online
from memwrite.modules.low_rank import LowRank
from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin
from memwrite.plugins.builtin import baselines, readers
from memwrite.protocols import (
    Backbone,
    Conditioning,
    Granularity,
    LayerInput,
    ProjectionDeltas,
    ScanOutput,
    StaticAdapter,
    WriteOutput,
)
from memwrite.state import MemoryState, PackedTokens, StateSpec


@dataclass(frozen=True)
class SlotsConfig:
    """The size of the memory.

    Attributes:
        slots: the number of vectors, the rank, or the width of keys.

    Raises:
        ValueError: it is below 1.
    """

    slots: int = 4

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")


class ReferenceWriter(nn.Module):
    """What these writers share: a backbone that is not their own, and states that start with zeros."""

    reserved_positions = 0
    spec: StateSpec

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.slots = backbone, config.slots
        info = backbone.info
        self.dtype = info.state_dtype
        self.scale = nn.Parameter(torch.ones(info.hidden_size, dtype=self.dtype))

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states of zeros."""
        return self.spec.zeros(batch_size, self.backbone.info.device)

    def sums(self, context: PackedTokens) -> Tensor:
        """Return (B, M, D): for every slot the sum of the scaled embeddings of the tokens whose ids fall to it."""
        embeddings = self.backbone.embed(context.ids).to(self.dtype) * self.scale
        share = F.one_hot(context.ids % self.slots, self.slots) * context.mask[..., None]
        return share.to(self.dtype).mT @ embeddings


class BagWriter(ReferenceWriter):
    """Writes `prefix` states: adds up embeddings, so that neither order nor grouping matters."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shapes = {"memory": (config.slots, backbone.info.hidden_size)}
        self.spec = StateSpec("prefix", shapes, dtype=self.dtype)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """See `Writer.write`."""
        return WriteOutput(MemoryState(self.spec, {"memory": state["memory"] + self.sums(context)}))

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """See `MergingWriter.merge`."""
        return MemoryState(self.spec, {"memory": first["memory"] + second["memory"]})

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """See `DeletingWriter.forget`."""
        return WriteOutput(MemoryState(self.spec, {"memory": state["memory"] - self.sums(context)}))


class FactorsWriter(ReferenceWriter):
    """Writes `lowrank` states: added embeddings are what the query projection listens to."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        info = backbone.info
        layers, width = tuple(range(info.layers)), info.heads * info.head_dim
        shapes = {
            "A.q": (info.layers, config.slots, info.hidden_size),
            "B.q": (info.layers, width, config.slots),
        }
        self.spec = StateSpec("lowrank", shapes, layers, self.dtype)
        self.out = nn.Parameter(torch.randn(info.layers, width, config.slots, dtype=self.dtype) / 4)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states with zeros in A, and the learned B."""
        zeros = super().init(batch_size)["A.q"]
        return MemoryState(
            self.spec, {"A.q": zeros, "B.q": self.out.expand(batch_size, -1, -1, -1).clone()}
        )

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """See `Writer.write`."""
        rows = state["A.q"] + self.sums(context)[:, None]
        return WriteOutput(MemoryState(self.spec, {"A.q": rows, "B.q": state["B.q"]}))


class WindowWriter(ReferenceWriter):
    """Writes `keyvalue` states: the keys and values of the last tokens."""

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        info = backbone.info
        shape = (info.layers, info.kv_heads, config.slots, info.head_dim)
        shapes = {"keys": shape, "values": shape, "mask": (config.slots,), "next_position": ()}
        self.spec = StateSpec("keyvalue", shapes, tuple(range(info.layers)), info.dtype)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """See `Writer.write`."""
        embeddings = self.backbone.embed(context.ids) * self.scale.to(self.backbone.info.dtype)
        new = self.backbone.forward(embeddings, use_cache=True).key_values
        assert new is not None
        mask = torch.cat([state["mask"], context.mask], 1)
        last = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, -self.slots :]
        real = mask.gather(1, last)

        def kept(old: Tensor, added: Tensor) -> Tensor:
            both = torch.cat([old, added], 3)
            index = last[:, None, None, :, None].expand(*both.shape[:3], -1, both.shape[-1])
            return both.gather(3, index) * real[:, None, None, :, None]

        tensors = {
            "keys": kept(state["keys"], new.keys),
            "values": kept(state["values"], new.values),
            "mask": real,
            "next_position": torch.full_like(state["next_position"], self.slots),
        }
        return WriteOutput(MemoryState(self.spec, tensors))


class OuterWriter(ReferenceWriter):
    """Writes `matrix` states: an outer product of a value and a key for every token (fast weights), written online."""

    granularity: Granularity = "token"

    def __init__(self, config: SlotsConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        info = backbone.info
        layers = tuple(range(info.layers))
        self.spec = StateSpec(
            "matrix", {"S": (info.layers, 1, *[config.slots] * 2)}, layers, self.dtype
        )
        shape = (info.layers, 2, config.slots, info.hidden_size)
        self.maps = nn.Parameter(torch.randn(shape, dtype=self.dtype) / info.hidden_size**0.5)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """See `Writer.write`."""
        return online.run(self.backbone, self, None, context, state).written

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """See `OnlineWriter.scan`."""
        hidden, mask, queries = step.hidden, step.mask, step.queries
        before = state["S"][:, 0]
        keys, values = (F.linear(hidden.to(self.dtype), weight) for weight in self.maps[step.layer])
        keys = F.normalize(keys, dim=-1)
        values = values * float(write)
        if mask is not None:
            values = values * mask[..., None]
        reads = None
        if queries is not None:
            asked = queries[:, :, 0]
            earlier = (asked @ keys.mT).tril(-1) @ values
            reads = (asked @ before.mT + earlier)[:, :, None]
        return ScanOutput(reads, {"S": (before + values.mT @ keys)[:, None]})


class LinearReader(nn.Module):
    """Reads S q at every position and adds a linear map of it to the output of attention."""

    accepts = frozenset({"matrix"})

    def __init__(self, config: readers.NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        _, heads, values, keys = spec.shapes["S"]
        width, dtype = (
            backbone.info.hidden_size,
            torch.promote_types(backbone.info.dtype, torch.float32),
        )
        self._layers, self._heads = spec.layers, heads
        self.query = nn.Parameter(torch.randn(heads * keys, width, dtype=dtype) / width**0.5)
        self.out = nn.Parameter(torch.randn(width, heads * values, dtype=dtype) / values**0.5)

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """See `LayerReader.queries`."""
        queries = F.linear(hidden.to(self.query.dtype), self.query)
        return queries.reshape(*queries.shape[:-1], self._heads, -1)

    def correct(self, layer: int, reads: Tensor) -> ProjectionDeltas:
        """See `LayerReader.correct`."""
        return {"o": F.linear(reads.to(self.out.dtype).flatten(2), self.out)}

    def condition(self, state: MemoryState, /) -> Conditioning:
        """See `Reader.condition`."""
        return Conditioning(
            corrections={
                layer: StaticAdapter(state.layer(layer), partial(self._additions, layer))
                for layer in self._layers
            }
        )

    def _additions(
        self, layer: int, tensors: Mapping[str, Tensor], hidden: Tensor
    ) -> ProjectionDeltas:
        reads = torch.einsum("bhvk,bthk->bthv", tensors["S"], self.queries(layer, hidden))
        return self.correct(layer, reads)


class FactoredReader(nn.Module):
    """Adds B A x to the projections that a `lowrank` state has factors for, of those that see x: q, k, v."""

    accepts = frozenset({"lowrank"})

    def __init__(self, config: readers.NoParams, backbone: Backbone, spec: StateSpec) -> None:
        super().__init__()
        self._layers = spec.layers
        self._names = [name for name in "qkv" if f"A.{name}" in spec.shapes]

    def condition(self, state: MemoryState, /) -> Conditioning:
        """See `Reader.condition`."""
        return Conditioning(
            corrections={
                layer: StaticAdapter(state.layer(layer), self._additions) for layer in self._layers
            }
        )

    def _additions(self, tensors: Mapping[str, Tensor], hidden: Tensor) -> ProjectionDeltas:
        return {
            name: LowRank(tensors[f"A.{name}"], tensors[f"B.{name}"], scale=1.0)(hidden)
            for name in self._names
        }


def _writer(
    kind: str, build: type[ReferenceWriter], summary: str, *capabilities: str
) -> WriterPlugin:
    return WriterPlugin(
        api=2,
        name=f"reference-{kind}",
        summary=summary,
        config=SlotsConfig,
        build=build,  # type: ignore[arg-type]
        emits=kind,
        capabilities=Capabilities(**dict.fromkeys(capabilities, True)),
    )


def _reader(kind: str, build: type[nn.Module], summary: str) -> ReaderPlugin:
    return ReaderPlugin(
        api=2,
        name=f"reference-{kind}",
        summary=summary,
        config=readers.NoParams,
        build=build,  # type: ignore[arg-type]
        accepts=frozenset({kind}),
    )


#: By kind of state.
WRITERS: dict[str, WriterPlugin] = {
    "prefix": _writer(
        "prefix", BagWriter, "sums of embeddings",
        "streaming", "chunk_exact", "differentiable", "order_free", "mergeable", "deletion",
    ),
    "matrix": _writer(
        "matrix", OuterWriter, "outer products, online",
        "streaming", "chunk_exact", "differentiable", "online",
    ),
    "keyvalue": _writer("keyvalue", WindowWriter, "keys and values of the last tokens"),
    "lowrank": _writer(
        "lowrank", FactorsWriter, "sums of embeddings as low-rank factors",
        "streaming", "chunk_exact", "differentiable", "order_free",
    ),
    "empty": baselines.memwrite_writers()[0],
}  # fmt: skip

_PREFIX, _KEY_VALUE = readers.memwrite_readers()
READERS: dict[str, ReaderPlugin] = {
    "prefix": _PREFIX,
    "keyvalue": _KEY_VALUE,
    "matrix": _reader("matrix", LinearReader, "a linear map of S q"),
    "lowrank": _reader("lowrank", FactoredReader, "B A x"),
    "empty": baselines.memwrite_readers()[0],
}
