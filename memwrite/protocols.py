"""The contracts between core and plugins. A plugin author reads this file and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from memwrite.state import MemoryState, StateSpec, Tokens


@dataclass(frozen=True)
class KeyValues:
    """Past keys and values of every layer, after key norm and rotary embedding.

    Attributes:
        keys: (B, L, Hkv, M, Dh).
        values: (B, L, Hkv, M, Dh).
        mask: (B, M) bool, True where a slot is real.
        next_position: (B,) int64, the position of the token that follows.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    next_position: Tensor

    def rows(self, index: Tensor) -> KeyValues:
        """The rows that `index` (N,) names; a row may be named many times."""
        return KeyValues(
            *(t[index] for t in (self.keys, self.values, self.mask, self.next_position))
        )

    def drop_last(self) -> KeyValues:
        """Without the last slot, which must be real in every row."""
        return KeyValues(
            self.keys[..., :-1, :],
            self.values[..., :-1, :],
            self.mask[:, :-1],
            self.next_position - 1,
        )


#: What to add to the outputs of a layer's projections, by name: "q", "k", "v", "o". Either a tensor
#: (B, T, width of that projection) or a function of the projection's own input (B, T, its width).
Additions = Mapping[str, Tensor | Callable[[Tensor], Tensor]]


class Corrects(Protocol):
    """A memory's effect on one attention layer: hidden states (B, T, D) -> additions to q, k, v, o."""

    def __call__(self, hidden: Tensor) -> Additions: ...

    def rows(self, index: Tensor) -> Self:
        """For the rows that `index` (N,) names; a row may be named many times."""
        ...


@dataclass(frozen=True)
class Correction:
    """The effect of a memory at rest on one attention layer; a `Corrects`.

    Attributes:
        tensors: name -> (B, ...): all that differs from row to row, so that rows can be reordered.
        apply: pure function of (tensors, hidden (B, T, D)) giving the additions.
    """

    tensors: Mapping[str, Tensor]
    apply: Callable[[Mapping[str, Tensor], Tensor], Additions]

    def __call__(self, hidden: Tensor) -> Additions:
        return self.apply(self.tensors, hidden)

    def rows(self, index: Tensor) -> Correction:
        """The rows that `index` (N,) names; a row may be named many times."""
        return replace(self, tensors={n: t[index.to(t.device)] for n, t in self.tensors.items()})


@dataclass(frozen=True)
class Conditioning:
    """The only ways a memory may enter a model; the core applies them, in this order.

    Attributes:
        key_values: per-layer past keys and values that come first.
        prefix: (B, M, D) embeddings that come next, before the query.
        corrections: layer -> correction, in force for prefix and query.
    """

    prefix: Tensor | None = None
    key_values: KeyValues | None = None
    corrections: Mapping[int, Correction] | None = None


@dataclass(frozen=True)
class Written:
    """What a write gives back.

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
    """What a read gives back.

    Attributes:
        logits: (B[, Q], Tq, V) float32; column j predicts the token after query token j. Zero at padding.
        first: (B, V) float32, the prediction of the first query token from the last memory position; None
            where the memory has no position of its own.
    """

    logits: Tensor
    first: Tensor | None


@dataclass(frozen=True)
class BackboneInfo:
    """What there is to know about a backbone without touching it.

    Attributes:
        architecture: the model's family, for instance "llama".
        hidden_size: D.
        layers: number of attention layers.
        heads: query heads per layer.
        kv_heads: key and value heads per layer.
        head_dim: Dh.
        vocab_size: V.
        positions: the longest sequence it can take.
        start: id of the token that opens a text.
        end: id of the token that closes a text.
        dtype: of its weights.
        device: of its weights.
        double_backward: whether a gradient through it can be differentiated again.
        ngram: how many tokens of a text an embedding is made of: of its own and those before; 1 with most models.
    """

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    positions: int
    start: int
    end: int
    dtype: torch.dtype
    device: torch.device
    double_backward: bool
    ngram: int = 1


@dataclass(frozen=True)
class Pass:
    """One run of a backbone: hidden (B, T, D) after the final norm; key_values of past and new tokens, if kept."""

    hidden: Tensor
    key_values: KeyValues | None = None


class Backbone(Protocol):
    """A causal language model, as writers see it. It is not an nn.Module, so holding it registers nothing."""

    @property
    def info(self) -> BackboneInfo: ...

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) int64, each row a text from its beginning -> (B, T, D): what the first layer receives, embedding scale
        included.
        """
        ...

    def forward(
        self,
        embeddings: Tensor,
        *,
        past: KeyValues | None = None,
        corrections: Mapping[int, Corrects] | None = None,
        keep: bool = False,
    ) -> Pass:
        """Run (B, T, D) embeddings, real ones first in their rows, behind `past`.

        No mask is needed: attention is causal and padding comes last, so no real token sees it.
        `keep` asks for the keys and values, those of padding included.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own weights, those that are frozen included."""
        ...

    @property
    def head(self) -> Tensor:
        """(V, D), the weight of the output embedding."""
        ...

    def projection(self, layer: int, name: str) -> Tensor:
        """The weight (output width, input width) of "q", "k", "v" or "o" of an attention layer, not a copy."""
        ...

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., V) in float32 (float64 for a float64 model); `head` (V, D) in place of the model's."""
        ...


class Writer(Protocol):
    """Turns contexts into states. An nn.Module, built by `WriterPlugin.build(config, backbone)`.

    Its parameters are learned; the state is never one of them, nor a buffer or an attribute.
    """

    @property
    def spec(self) -> StateSpec: ...

    @property
    def reserve(self) -> int:
        """Positions of the backbone that one write uses besides the context's own."""
        ...

    def init(self, batch_size: int, /) -> MemoryState:
        """The state of B memories that have read nothing."""
        ...

    def write(self, state: MemoryState, context: Tokens, /) -> Written:
        """A new state that has also read `context` (B, T); never in place.

        A row without real tokens returns its state unchanged. Keeps a graph only where grad mode is on.
        """
        ...


@runtime_checkable
class MergingWriter(Writer, Protocol):
    """A writer that can make two states one."""

    def merge(self, first: MemoryState, second: MemoryState, /) -> MemoryState:
        """The state of a memory that has read what both have read; neither of them is changed."""
        ...


#: What an online writer writes at a time.
Granularity = Literal["token", "message", "sentence"]


@dataclass(frozen=True)
class Scanned:
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

    def scan(
        self,
        layer: int,
        hidden: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        queries: Tensor | None,
        state: Mapping[str, Tensor],
        write: bool,
    ) -> Scanned:
        """Read and write T tokens at one layer, in order.

        Args:
            layer: one of `spec.layers`.
            hidden: (B, T, D), what the layer's attention receives.
            mask: (B, T) bool, True where a token is real; real ones come first. None where all of them are.
            segments: (B, T) as in `Tokens`.
            queries: (B, T, H, Dk), or None where nobody reads.
            state: this layer's part of the state's tensors, (B, *shape without the L axis); not changed in place.
            write: False leaves the state as it is.
        """
        ...


class Reader(Protocol):
    """Turns states into conditionings. An nn.Module, built by `ReaderPlugin.build(config, backbone, spec)`."""

    @property
    def accepts(self) -> frozenset[str]: ...

    def condition(self, state: MemoryState, /) -> Conditioning:
        """How this state enters the model. It never runs the model and never sees the context."""
        ...


@runtime_checkable
class LayerReader(Reader, Protocol):
    """A reader whose corrections come from per-layer queries to a matrix state.

    Of a state at rest it is the reader with reads = S q; while an online writer writes, the core gives it the
    reads of the writer's scan.
    """

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> queries (B, T, H, Dk)."""
        ...

    def correct(self, layer: int, reads: Tensor) -> Additions:
        """reads (B, T, H, Dv) -> additions to the layer's projections."""
        ...
