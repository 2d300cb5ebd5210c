"""The values that cross from WRITE to READ: tokens go in, a memory state comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from memwrite.errors import ContractViolation
from memwrite.utils.batch import Batch
from memwrite.utils.padding import real_first, right_padded

#: The prefix of names of tensors that only further writes need; every kind of state may have such tensors.
LATENT = "latent."


@dataclass(frozen=True)
class Tokens(Batch):
    """A padded batch of token ids.

    Attributes:
        ids: (B, T) int64; queries may be (B, Q, T), Q queries per state.
        mask: bool of the same shape, True where a token is real; padding may stand anywhere in a row.
        segments: int64 of the same shape: the message or sentence that a token belongs to, -1 for none; or None.

    Raises:
        ValueError: the shapes or dtypes disagree.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor | None = None

    def __post_init__(self) -> None:
        ids, mask, segments, shape = self.ids, self.mask, self.segments, tuple(self.ids.shape)
        if ids.dtype != torch.int64 or ids.ndim not in (2, 3):
            raise ValueError(
                f"Tokens.ids must be int64 of shape (B, T) or (B, Q, T), got {ids.dtype} of shape {shape}"
            )
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"Tokens.mask must be bool of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        if segments is not None and (segments.dtype != torch.int64 or segments.shape != shape):
            raise ValueError(f"Tokens.segments must be int64 of shape {shape}")

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int]], device: torch.device | str | None = None
    ) -> PackedTokens:
        """Right-pad B lists of token ids into one (B, T) batch."""
        return PackedTokens(*right_padded(rows, device))

    @property
    def lengths(self) -> Tensor:
        """Return the number of real tokens of each row, (B,) or (B, Q) int64."""
        return self.mask.sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to ids, mask and segments."""
        segments = None if self.segments is None else change(self.segments)
        return type(self)(change(self.ids), change(self.mask), segments)

    def columns(self, start: int, stop: int) -> Self:
        """Return the columns start..stop-1 of every row."""
        return self.map(lambda tensor: tensor[..., start:stop])

    def flat(self) -> Self:
        """Return (B, Q, T) as (B·Q, T), and (B, T) unchanged."""
        return self.map(lambda tensor: tensor.flatten(0, -2))

    def packed(self) -> PackedTokens:
        """Move real tokens to the front of their rows, in order, and drop columns that are all padding."""
        return self.pack()[0]

    def pack(self) -> tuple[PackedTokens, Tensor]:
        """Return `packed()` and the original column (..., T') of every packed one."""
        order = real_first(self.mask)
        packed = self.map(lambda tensor: tensor.gather(-1, order))
        return PackedTokens(packed.ids, packed.mask, packed.segments), order


@dataclass(frozen=True)
class PackedTokens(Tokens):
    """Tokens whose real ones come first in every row; `Tokens.packed()` and `Tokens.from_rows()` make them.

    Code that runs a model takes no others: attention is causal, so no real token sees the padding behind it.

    Raises:
        ValueError: padding stands before a real token.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        mask, traced = self.mask, torch.compiler.is_compiling()
        if not traced and bool((mask[..., 1:] & ~mask[..., :-1]).any()):
            raise ValueError("padding stands before a real token: call Tokens.packed()")


#: (one layer's tensors (B, ...), queries (B, T, H, Dk)) -> reads (B, T, H, Dv).
Recall = Callable[[Mapping[str, Tensor], Tensor], Tensor]
#: One layer's tensors (B, ...) -> tensors (B, ...) that a recall answers from as well, and sooner.
Prepare = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class StateKind:
    """A kind of state: the tensors that writers and readers by different authors agree on.

    Attributes:
        name: what specs, files and readers call it.
        required: tensor name -> the names of its axes behind the batch axis, such as "L H Dv Dk". Axes with the same
            name have the same size. "L", the layers of the spec, comes first.
        optional: further tensors that a state may have, in the same form.
        dtypes: the dtypes of tensors that do not have the state's dtype.
        recall: gives the answers of one layer's tensors, whose axes include L, H, Dk and Dv, to queries; or None.
        prepare: computes what the answers to all queries have in common, once for a state at rest; or None.
        summary: one line for people.

    Raises:
        ContractViolation: there is a recall, but an axis that it needs is not named.
    """

    name: str
    required: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    recall: Recall | None = None
    prepare: Prepare | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        missing = {"L", "H", "Dk", "Dv"} - {a for axes in self.axes.values() for a in axes}
        if self.recall is not None and missing:
            raise ContractViolation(
                f"the kind '{self.name}' has a recall, but no tensor of it has the axes {sorted(missing)}"
            )

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Return the axis names of every tensor, required or optional."""
        return {name: tuple(a.split()) for name, a in {**self.required, **self.optional}.items()}

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the size of every axis, by the axis's name.

        Raises:
            ContractViolation: the shapes are not those of this kind.
        """
        axes = self.axes
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(LATENT)}
        fits = all(name in axes and len(axes[name]) == len(shape) for name, shape in shapes.items())
        if not fits or not self.required.keys() <= shapes.keys():
            raise ContractViolation(
                f"a '{self.name}' state has the tensors {dict(self.required)} and may have "
                f"{dict(self.optional)} (name: axes behind the batch) besides 'latent.*', but this spec has {shapes}"
            )
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            for axis, size in zip(axes[name], shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise ContractViolation(
                        f"in this '{self.name}' state the axis {axis} has {sizes[axis]} elements, but {size} in '{name}'"
                    )
        return sizes


def matrix_recall(tensors: Mapping[str, Tensor], queries: Tensor) -> Tensor:
    """Return the reads r = S q."""
    return torch.einsum("bhvk,bthk->bthv", tensors["S"].to(queries.dtype), queries)


_PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
_LOW_RANK = {f"A.{p}": f"L r.{p} in.{p}" for p in _PROJECTIONS}
_LOW_RANK |= {f"B.{p}": f"L out.{p} r.{p}" for p in _PROJECTIONS}
_OWN = (
    StateKind("empty", {}, summary="nothing at all"),
    StateKind(
        "prefix",
        {"memory": "M D"},
        {"latent": "R D", "mask": "M"},
        {"mask": torch.bool},
        summary="vectors that are prepended to the query",
    ),
    StateKind(
        "keyvalue",
        {"keys": "L Hkv M Dh", "values": "L Hkv M Dh", "mask": "M", "next_position": ""},
        {"bias": "L Hkv M"},
        {"mask": torch.bool, "next_position": torch.int64},
        summary="keys and values that every layer attends to",
    ),
    StateKind(
        "matrix",
        {"S": "L H Dv Dk"},
        recall=matrix_recall,
        summary="a matrix per layer and head, read by S q",
    ),
    StateKind("lowrank", {}, _LOW_RANK, summary="low-rank weights of each layer's projections"),
)
#: Kinds by name: the core's own, and those of plugins (hook `memwrite_kinds`). Specs of other kinds are not checked.
KINDS: dict[str, StateKind] = {kind.name: kind for kind in _OWN}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a state.

    Attributes:
        shape: behind the batch axis.
        dtype: None for the state's own.
        per_layer: whether the leading axis stands for the spec's layers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    per_layer: bool = True


@dataclass(frozen=True, init=False)
class StateSpec:
    """The size of a memory, per example: never a function of the context's length.

    Attributes:
        kind: the name of a `StateKind`, or any other name.
        tensors: name -> `TensorSpec`, or a shape alone: its dtype is then the kind's, else the state's, and it is per layer
            where the kind's axes begin with "L" or, for a name without axes, where it begins with the number of layers.
        layers: the backbone layers that the leading axis of per-layer tensors stands for; () for none.
        dtype: the dtype of every tensor whose `TensorSpec` names none.
        bounded: False only for baselines that keep everything; their shapes are those of an empty state.

    Raises:
        ContractViolation: the tensors or axes are not the declared kind's, or a per-layer tensor has other layers.
    """

    kind: str
    tensors: Mapping[str, TensorSpec]
    layers: tuple[int, ...]
    dtype: torch.dtype
    bounded: bool

    def __init__(
        self,
        kind: str,
        tensors: Mapping[str, TensorSpec | tuple[int, ...]],
        layers: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        bounded: bool = True,
    ) -> None:
        declared = KINDS.get(kind, StateKind(kind, {}))

        def complete(name: str, spec: TensorSpec | tuple[int, ...]) -> TensorSpec:
            if not isinstance(spec, TensorSpec):
                axes = declared.axes.get(name)
                counted = bool(layers) and tuple(spec[:1]) == (len(layers),)
                per_layer = counted if axes is None else axes[:1] == ("L",)
                spec = TensorSpec(tuple(spec), declared.dtypes.get(name), per_layer)
            return replace(spec, dtype=None) if spec.dtype == dtype else spec

        specs = {name: complete(name, spec) for name, spec in tensors.items()}
        vars(self).update(kind=kind, tensors=specs, layers=layers, dtype=dtype, bounded=bounded)
        if kind in KINDS:
            declared.sizes(self.shapes)
        for name, spec in specs.items():
            if spec.per_layer and layers and spec.shape[:1] != (len(layers),):
                raise ContractViolation(
                    f"state tensor '{name}' of shape {spec.shape} should begin with an axis of {len(layers)}, one for "
                    f"each of the layers {list(layers)}"
                )

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.tensors.items()), self.layers, self.dtype, self.bounded))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor behind the batch axis, by name."""
        return {name: spec.shape for name, spec in self.tensors.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Return the size of every axis of a declared kind, by the axis's name; {} for other kinds."""
        return KINDS[self.kind].sizes(self.shapes) if self.kind in KINDS else {}

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype of the tensor `name`."""
        return self.tensors[name].dtype or self.dtype

    def zeros(self, batch: int, device: torch.device | str | None = None) -> MemoryState:
        """Return a state of `batch` rows of zeros."""
        tensors = {
            name: torch.zeros(batch, *shape, dtype=self.dtype_of(name), device=device)
            for name, shape in self.shapes.items()
        }
        return MemoryState(self, tensors)

    def admits(self, other: StateSpec) -> bool:
        """Return whether a state of the spec `other` may take the place of a state of this spec."""
        return self == other or (not self.bounded and self.kind == other.kind)

    @property
    def floats(self) -> int:
        """Return the number of elements per example, over all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        """Return the number of bytes per example, over all tensors."""
        return sum(prod(s) * self.dtype_of(n).itemsize for n, s in self.shapes.items())


@dataclass(frozen=True)
class MemoryState(Batch):
    """What crosses from WRITE to READ: tensors, nothing else.

    Attributes:
        spec: kind and shapes.
        tensors: name -> (B, *shape of the spec).

    Raises:
        ContractViolation: a tensor is missing, unknown, or has another shape or dtype than the spec says.
    """

    spec: StateSpec
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.tensors.keys() != self.spec.tensors.keys():
            raise ContractViolation(
                f"a '{self.spec.kind}' state should have the tensors {sorted(self.spec.tensors)}, but has {sorted(self.tensors)}"
            )
        for name, tensor in self.tensors.items():
            shape, dtype = self.spec.tensors[name].shape, self.spec.dtype_of(name)
            if not tensor.ndim or tensor.shape[1:] != shape or tensor.dtype != dtype:
                raise ContractViolation(
                    f"state tensor '{name}' should be (B, {', '.join(map(str, shape))}) {dtype}, "
                    f"but is {tuple(tensor.shape)} {tensor.dtype}"
                )
        if len({tensor.shape[0] for tensor in self.tensors.values()}) > 1:
            raise ContractViolation("the tensors of a state disagree about the batch size")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in self.tensors.items())
        return f"MemoryState({self.spec.kind}: {shapes or 'no tensors'}; {self.nbytes:,} bytes)"

    @property
    def batch_size(self) -> int | None:
        """Return the number of rows B; None for a state without tensors, which fits any batch."""
        return next((tensor.shape[0] for tensor in self.tensors.values()), None)

    @property
    def floats(self) -> int:
        """Return the number of elements of all rows together, measured from the tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of all rows together, measured from the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same shape-preserving change to every tensor."""
        return replace(self, tensors={name: change(t) for name, t in self.tensors.items()})

    def layer(self, layer: int) -> dict[str, Tensor]:
        """Return the tensors (B, ...) of one backbone layer, by name; those that are not per layer are left out.

        Raises:
            ContractViolation: the state has nothing for that layer.
        """
        if layer not in self.spec.layers:
            raise ContractViolation(
                f"this state is for the layers {list(self.spec.layers)}, not for layer {layer}"
            )
        index = self.spec.layers.index(layer)
        return {n: self[n][:, index] for n, spec in self.spec.tensors.items() if spec.per_layer}

    def where(self, rows: Tensor, other: MemoryState) -> MemoryState:
        """Return this state in the rows that are True in `rows` (B,) bool, and `other` of the same spec elsewhere.

        Raises:
            ContractViolation: the specs differ.
        """
        if self.spec != other.spec:
            raise ContractViolation("only states of one spec can be mixed row by row")
        own = self.tensors.items()
        mixed = {n: t.where(rows.view(-1, *[1] * (t.ndim - 1)), other[n]) for n, t in own}
        return replace(self, tensors=mixed)

    @staticmethod
    def stack(states: Sequence[MemoryState]) -> MemoryState:
        """Put the rows of several states of one spec into one batch.

        Raises:
            ContractViolation: the specs differ, or there is no state.
        """
        if not states or any(state.spec != states[0].spec for state in states):
            raise ContractViolation("only states of one spec can be stacked, and at least one")
        names = states[0].spec.tensors
        return replace(states[0], tensors={n: torch.cat([s[n] for s in states]) for n in names})
