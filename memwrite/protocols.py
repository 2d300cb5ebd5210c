"""The contracts between core and plugins. A plugin author reads this file and `memwrite/state.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from memwrite.state import MemoryState, PackedTokens, StateSpec, TensorSpec
from memwrite.utils.batch import Batch

#: What the recurrent layers of a model hold: number of the decoder layer -> "conv" and "recurrent", those that there are
#: -> (B, ...). It stands for everything they have read, so that it cannot go back.
RecurrentStates = Mapping[int, Mapping[str, Tensor]]


@dataclass(frozen=True)
class LayerActivations:
    """What one attention layer computed; see `Backbone.forward(observe=)`.

    Attributes:
        layer: number of the attention layer.
        hidden: (B, T, D), what the layer's attention receives.
        queries: (B, H, T, Dh) after norm and rotary embedding.
        keys: (B, Hkv, S, Dh), likewise; past slots first, then the T new ones.
        values: (B, Hkv, S, Dh).
        scale: factor of the attention logits, queries · keys.
        positions: (B, T) or (1, T) int64, of the queries; None where the model's layers are not told.
        cap: logits become cap · tanh(logits / cap) before anything is added to them; None where they stay.
    """

    layer: int
    hidden: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    positions: Tensor | None = None
    cap: float | None = None


@dataclass(frozen=True)
class SlotRule(Batch):
    """What a query sees of a memory's slots, where queries differ in that; a bias that depends on the query.

    Attributes:
        tensors: name -> (B, M, ...): all that differs from row to row, by slot.
        apply: pure function of (tensors, what a layer computed) that gives (B, H, T, N), added to the attention logits of
            the first N slots, of which the memory has the first M; -inf hides a slot from a query.
    """

    tensors: Mapping[str, Tensor]
    apply: Callable[[Mapping[str, Tensor], LayerActivations], Tensor]

    def __call__(self, seen: LayerActivations) -> Tensor:
        return self.apply(self.tensors, seen)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor."""
        return replace(self, tensors={name: change(t) for name, t in self.tensors.items()})


@dataclass(frozen=True)
class KeyValues(Batch):
    """What a model holds of the text that it has read: past keys and values of every attention layer, after key norm and
    rotary embedding, and the states of its recurrent layers.

    Attributes:
        keys: (B, L, Hkv, M, Dh).
        values: (B, L, Hkv, M, Dh).
        mask: (B, M) bool, True where a slot is real.
        next_position: (B,) int64, the position of the token that follows.
        bias: (B, L, Hkv, M), added to the attention logits of each slot; -inf hides a slot from a head. None for none.
        recurrent: None where no recurrent layer has read anything, as in a model of attention alone.
        rule: what each query sees of the slots; None where all see the same.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    next_position: Tensor
    bias: Tensor | None = None
    recurrent: RecurrentStates | None = None
    rule: SlotRule | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor."""
        return type(self)(
            change(self.keys),
            change(self.values),
            change(self.mask),
            change(self.next_position),
            None if self.bias is None else change(self.bias),
            None
            if self.recurrent is None
            else {
                layer: {name: change(tensor) for name, tensor in states.items()}
                for layer, states in self.recurrent.items()
            },
            None if self.rule is None else self.rule.map(change),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over every tensor."""
        yield from (self.keys, self.values, self.mask, self.next_position)
        if self.bias is not None:
            yield self.bias
        for states in (self.recurrent or {}).values():
            yield from states.values()
        if self.rule is not None:
            yield from self.rule.tensors.values()

    @property
    def begun(self) -> Tensor:
        """Say in which rows (B,) anything has been read, if there are slots to show for it or not."""
        begun = self.mask.any(1) | (self.next_position > 0)
        for states in (self.recurrent or {}).values():
            for tensor in states.values():
                begun = begun | tensor.flatten(1).any(1)
        return begun

    @staticmethod
    def stack(parts: Sequence[KeyValues]) -> KeyValues:
        """Put the rows of several, alike but for their rows, into one."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        stacked = iter([torch.cat(column) for column in columns])
        return parts[0].map(lambda _: next(stacked))

    def drop_last(self) -> KeyValues:
        """Return all but the last slot, which must be real in every row.

        Raises:
            ValueError: recurrent layers have read it.
        """
        if self.recurrent is not None:
            raise ValueError("a recurrent state cannot go back")
        return replace(
            self,
            keys=self.keys[..., :-1, :],
            values=self.values[..., :-1, :],
            mask=self.mask[:, :-1],
            next_position=self.next_position - 1,
            bias=None if self.bias is None else self.bias[..., :-1],
        )


#: What to add to the output of a projection: a tensor (B, T, its width), or a function that gives one from the
#: projection's own input (B, T, its width).
Delta = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gate:
    """A factor on the output of a projection, and perhaps something to add behind it: factor · y + delta."""

    factor: Delta
    delta: Delta | None = None


#: How one layer's projections change, by name: "q", "k", "v", "o" of its attention and "gate", "up", "down" of its MLP.
ProjectionDeltas = Mapping[str, Delta | Gate]


class LayerAdapter(Protocol):
    """A memory's effect on one layer: hidden states (B, T, D) that its attention receives -> changes of projections."""

    def __call__(self, hidden: Tensor) -> ProjectionDeltas: ...

    def rows(self, index: Tensor) -> Self:
        """Return the adapter of the rows that `index` (N,) names; a row may be named many times."""
        ...


@runtime_checkable
class ResidualAdapter(LayerAdapter, Protocol):
    """A `LayerAdapter` that changes the residual stream as well: what a whole decoder layer receives, and what it gives."""

    def entering(self, hidden: Tensor) -> Tensor:
        """Return what the layer is to receive in place of hidden states (B, T, D)."""
        ...

    def leaving(self, hidden: Tensor) -> Tensor:
        """Return what the layer is to give in place of hidden states (B, T, D)."""
        ...


@dataclass(frozen=True)
class StaticAdapter:
    """The effect on one layer of a memory at rest; a `LayerAdapter`.

    Attributes:
        tensors: name -> (B, ...): all that differs from row to row, so that rows can be reordered.
        apply: pure function of (tensors, hidden (B, T, D)) that gives the changes.
    """

    tensors: Mapping[str, Tensor]
    apply: Callable[[Mapping[str, Tensor], Tensor], ProjectionDeltas]

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        return self.apply(self.tensors, hidden)

    def rows(self, index: Tensor) -> StaticAdapter:
        """Return the adapter of the rows that `index` (N,) names; a row may be named many times."""
        return replace(self, tensors={n: t[index.to(t.device)] for n, t in self.tensors.items()})


@dataclass(frozen=True)
class Conditioning:
    """The only ways a memory may enter a model; the core applies them, in this order.

    Attributes:
        key_values: per-layer past keys and values that come first, with what recurrent layers hold at their end.
        prefix: (B, M, D) embeddings that come next, before the query.
        prefix_lengths: (B,) int64, how many of a row's embeddings are real, first in their row; None where all are.
        corrections: layer -> adapter of its projections, in force for prefix and query.
    """

    prefix: Tensor | None = None
    key_values: KeyValues | None = None
    corrections: Mapping[int, LayerAdapter] | None = None
    prefix_lengths: Tensor | None = None

    @property
    def longest_prefix(self) -> int:
        """Return the number of real embeddings of the row that has most."""
        if self.prefix is None or self.prefix_lengths is None:
            return 0 if self.prefix is None else self.prefix.shape[1]
        return int(self.prefix_lengths.max()) if self.prefix_lengths.numel() else 0


@dataclass(frozen=True)
class WriteOutput:
    """The result of a write.

    Attributes:
        state: the new state.
        losses: name -> (B,) with its graph; training adds the mean of each to its loss.
        trace: name -> (steps, B), detached: what happened while writing, for people to look at.
    """

    state: MemoryState
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    trace: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadOutput:
    """The result of a read.

    Attributes:
        logits: (B[, Q], Tq, V) float32; column j predicts the token after query token j. Zero at padding.
        first_logits: (B, V) float32, the prediction of the first query token from the last memory position; zero in a
            row whose prefix is empty. None where the memory has no position of its own.
    """

    logits: Tensor
    first_logits: Tensor | None


#: The label of a token that is not to be predicted.
IGNORED = -100


@dataclass(frozen=True)
class Predictions:
    """What is predicted at the labelled tokens of queries, each from the real token before it, or from the memory.

    Attributes:
        logits: (N, V) float32 at least.
        labels: (N,) the ids that are to be predicted.
        queries: (N,) the number of each one's query, the Q queries of a row being counted one after the other.
        columns: (N,) its place among the real tokens of its query.
    """

    logits: Tensor
    labels: Tensor
    queries: Tensor
    columns: Tensor

    def without_first(self) -> Predictions:
        """Leave out what is predicted of queries' first tokens."""
        kept = self.columns > 0
        return Predictions(
            self.logits[kept], self.labels[kept], self.queries[kept], self.columns[kept]
        )

    def sums(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Sum values (N,) over each query's predictions; `shape` is (B,) or (B, Q)."""
        total = values.new_zeros(shape.numel())
        return total.index_add(0, self.queries, values).reshape(shape)


@dataclass(frozen=True)
class BackboneInfo:
    """What there is to know about a backbone without touching it.

    Attributes:
        architecture: the model's family, for instance "llama".
        hidden_size: D.
        layers: number of attention layers. Wherever a layer is named by number, they alone are counted.
        heads: query heads per layer.
        kv_heads: key and value heads per layer.
        head_dim: Dh.
        vocab_size: V.
        positions: the longest sequence it can take.
        bos_id: id of the token that opens a text.
        eos_id: id of the token that closes a text.
        end_ids: ids of all tokens that end an answer, `eos_id` first.
        dtype: dtype of its weights.
        device: device of its weights.
        double_backward: whether a gradient through it can be differentiated again.
        ngram: number of tokens that an embedding depends on, its own and those before it; 1 with most models.
    """

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    positions: int
    bos_id: int
    eos_id: int
    dtype: torch.dtype
    device: torch.device
    double_backward: bool
    ngram: int = 1
    end_ids: tuple[int, ...] = ()

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of states, gates and learned parameters: float32, or float64 for a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)


@dataclass(frozen=True)
class BackboneOutput:
    """The result of one run: hidden (B, T, D) after the final norm; key_values of past and new tokens, if cached."""

    hidden: Tensor
    key_values: KeyValues | None = None


class Backbone(Protocol):
    """A causal language model, as writers see it. It is not an nn.Module, so holding it registers nothing."""

    @property
    def info(self) -> BackboneInfo: ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without such as open or close a text."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Embed (B, T) int64 ids, each row a text from its beginning, as (B, T, D): what the first layer receives,
        embedding scale included.
        """
        ...

    def forward(
        self,
        embeddings: Tensor,
        *,
        past: KeyValues | None = None,
        corrections: Mapping[int, LayerAdapter] | None = None,
        lengths: Tensor | None = None,
        use_cache: bool = False,
        observe: Callable[[LayerActivations], None] | None = None,
    ) -> BackboneOutput:
        """Run (B, T, D) embeddings, real ones first in their rows, behind `past`.

        No mask is needed: attention is causal and padding comes last, so no real token sees it.

        Args:
            embeddings: as `embed` gives them, or learned ones.
            past: keys and values that the new tokens attend to.
            corrections: layer -> adapter of its projections.
            lengths: (B,), how many embeddings of each row are real, so that padding takes none of the model's positions;
                by default all are.
            use_cache: return keys and values, those of padding included.
            observe: is called at every attention layer, in order, and may keep what it wants. Attention weights are
                not handed over: compute those that are needed from queries and keys.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the model's own weights, those that are frozen included."""
        ...

    @property
    def head(self) -> Tensor:
        """(V, D), the weight of the output embedding."""
        ...

    def projection(self, layer: int, name: str) -> Tensor:
        """Return the weight (output width, input width) of "q", "k", "v" or "o" of an attention layer,
        or "gate", "up" or "down" of the MLP behind it.

        Raises:
            ConfigError: the model has no such projection.
        """
        ...

    def rotate(self, keys: Tensor, by: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """Move keys, which carry rotary embeddings, forward or back.

        Args:
            keys: (B, L, Hkv, M, Dh); queries, of any number of heads, are moved likewise.
            by: how many positions, (B, M), or (B, L, Hkv, M) where heads differ.
            layers: the L layers whose keys they are; by default all.

        Raises:
            ConfigError: the model's positions are not rotations.
        """
        ...

    @property
    def recurrent(self) -> Mapping[int, Mapping[str, TensorSpec]]:
        """What each recurrent layer of the model holds, by the layer's number in the model; {} where none is."""
        ...

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Map (..., D) to (..., V) in float32 (float64 for a float64 model); `head` (V, D) replaces the model's."""
        ...


class Writer(Protocol):
    """Turns contexts into states. An nn.Module, built by `WriterPlugin.build(config, backbone)`.

    Its parameters are learned; the state is never one of them, nor a buffer or an attribute.
    """

    @property
    def spec(self) -> StateSpec: ...

    @property
    def reserved_positions(self) -> int:
        """Positions of the backbone that one write uses besides the context's own."""
        ...

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the state of B memories that have read nothing."""
        ...

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Return a new state that has also read `context` (B, T); never in place.

        Rows without real tokens may come out as they like: the core keeps them as they were. Keeps a graph only where
        grad mode is on.
        """
        ...


@runtime_checkable
class MergingWriter(Writer, Protocol):
    """A writer that can make two states one."""

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """Return the state of a memory that has read what both have read; neither of them is changed."""
        ...


@runtime_checkable
class DeletingWriter(Writer, Protocol):
    """A writer that can take a context out of a state again."""

    def forget(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Return the state of a memory that has read the same but for `context`; never in place.

        Args:
            state: has read `context`, as one write of its own, before or after whatever else.
            context: (B, T), as it was written. Rows without real tokens may come out as they like.

        Raises:
            InputError: the state cannot have read it.
        """
        ...


#: What an online writer writes at a time.
Granularity = Literal["token", "message", "sentence"]


@dataclass(frozen=True)
class LayerInput:
    """What one layer of an online writer is given for T tokens.

    Attributes:
        layer: one of the spec's layers.
        hidden: (B, T, D), what the layer's attention receives.
        mask: (B, T) bool, True where a token is real; real ones come first. None where all of them are.
        segments: (B, T) as in `Tokens`.
        queries: (B, T, H, Dk), or None where nobody reads.
    """

    layer: int
    hidden: Tensor
    mask: Tensor | None = None
    segments: Tensor | None = None
    queries: Tensor | None = None


@dataclass(frozen=True)
class ScanOutput:
    """What one layer of an online writer gives back for T tokens.

    Attributes:
        reads: (B, T, H, Dv); None where there were no queries.
        state: the layer's new tensors, as the scan was given them.
        losses: name -> (B,) with its graph; the mean over the layers becomes one of the write's losses.
        trace: gives name -> (B,), detached; likewise. Called when a write is over, not for every generated token.
    """

    reads: Tensor | None
    state: Mapping[str, Tensor]
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    trace: Callable[[], Mapping[str, Tensor]] = dict


@runtime_checkable
class OnlineWriter(Writer, Protocol):
    """A writer that can be read while it writes, layer by layer (delta rule)."""

    @property
    def granularity(self) -> Granularity:
        """What is one write: with "token" a text may come in pieces of any length; else `segments` tell."""
        ...

    def scan(self, step: LayerInput, state: Mapping[str, Tensor], /, *, write: bool) -> ScanOutput:
        """Read and write T tokens at one layer, in order.

        Args:
            step: the layer's hidden states, and queries where somebody reads.
            state: this layer's tensors, `MemoryState.layer`; not changed in place.
            write: False leaves the state as it is.
        """
        ...


class Reader(Protocol):
    """Turns states into conditionings. An nn.Module, built by `ReaderPlugin.build(config, backbone, spec)`."""

    @property
    def accepts(self) -> frozenset[str]:
        """The kinds of state it reads; "recall" stands for every kind that has a recall."""
        ...

    def condition(self, state: MemoryState, /) -> Conditioning:
        """Say how this state enters the model. It never runs the model and never sees the context."""
        ...


@runtime_checkable
class LayerReader(Reader, Protocol):
    """A reader whose corrections come from per-layer queries to a state whose kind has a recall.

    Of a state at rest it reads the kind's recall of the queries; while an online writer writes, the core gives it the
    reads of the writer's scan.
    """

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """Map hidden (B, T, D) to queries (B, T, H, Dk)."""
        ...

    def correct(self, layer: int, reads: Tensor) -> ProjectionDeltas:
        """Map reads (B, T, H, Dv) to changes of the layer's projections."""
        ...
