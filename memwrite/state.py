"""The values that cross from WRITE to READ: tokens go in, a memory state comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from memwrite.errors import ContractViolation

#: The tensor names of the kinds that strangers' writers and readers share, each with its number of
#: axes behind the batch axis. Names in the second mapping may be absent.
KINDS: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]] = {
    "empty": ({}, {}),
    "prefix": ({"memory": 2}, {"latent": 2}),
    "matrix": ({"S": 4}, {}),
    "keyvalue": ({"keys": 4, "values": 4, "mask": 1, "next_position": 0}, {}),
    "lowrank": ({}, {f"{side}.{projection}": 3 for side in "AB" for projection in "qkvo"}),
}

_EXACT_DTYPES = {("keyvalue", "mask"): torch.bool, ("keyvalue", "next_position"): torch.int64}


@dataclass(frozen=True)
class Tokens:
    """What goes in: a padded batch of token ids.

    Attributes:
        ids: (B, T) int64; queries may be (B, Q, T), Q queries per state.
        mask: same shape, bool, True where a token is real; padding may stand left, right or inside.
        segments: (B, T) int64, the message or sentence a token belongs to, -1 for none; or None.

    Raises:
        ValueError: the shapes or dtypes disagree.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.ndim not in (2, 3):
            raise ValueError(
                f"Tokens.ids must be int64 of shape (B, T) or (B, Q, T), "
                f"got {self.ids.dtype} of shape {tuple(self.ids.shape)}"
            )
        if self.mask.dtype != torch.bool or self.mask.shape != self.ids.shape:
            raise ValueError(
                f"Tokens.mask must be bool of shape {tuple(self.ids.shape)}, "
                f"got {self.mask.dtype} of shape {tuple(self.mask.shape)}"
            )
        if self.segments is not None and (
            self.segments.dtype != torch.int64 or self.segments.shape != self.ids.shape
        ):
            raise ValueError(f"Tokens.segments must be int64 of shape {tuple(self.ids.shape)}")

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int]], device: torch.device | str | None = None
    ) -> Tokens:
        """Right-pad B lists of token ids into one (B, T) batch."""
        width = max((len(row) for row in rows), default=0)
        ids = torch.tensor(
            [[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64, device=device
        ).reshape(len(rows), width)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return cls(ids, torch.arange(width, device=device) < lengths[:, None])

    @property
    def lengths(self) -> Tensor:
        """Real tokens per row, (B,) or (B, Q) int64."""
        return self.mask.sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """The same change applied to ids, mask and segments."""
        segments = None if self.segments is None else change(self.segments)
        return Tokens(change(self.ids), change(self.mask), segments)

    def to(self, device: torch.device | str) -> Tokens:
        """A copy on `device` (the same tensors where they are there already)."""
        return self.map(lambda tensor: tensor.to(device))

    def clone(self) -> Tokens:
        """A copy that shares no memory with this one."""
        return self.map(torch.clone)

    def rows(self, index: Tensor | slice) -> Tokens:
        """The rows that `index` names."""
        return self.map(lambda tensor: tensor[index])

    def columns(self, start: int, stop: int) -> Tokens:
        """The columns start..stop-1 of every row."""
        return self.map(lambda tensor: tensor[..., start:stop])

    def flat(self) -> Tokens:
        """(B, Q, T) as (B·Q, T); (B, T) unchanged."""
        return self.map(lambda tensor: tensor.flatten(0, -2))

    def packed(self) -> Tokens:
        """Real tokens moved to the front of their rows, in order; no column is all padding."""
        return self.pack()[0]

    def pack(self) -> tuple[Tokens, Tensor]:
        """Like `packed`, with the (..., T') original column of every packed one."""
        order = (~self.mask).to(torch.uint8).argsort(dim=-1, stable=True)
        order = order[..., : int(self.lengths.max()) if self.mask.numel() else 0]
        return self.map(lambda tensor: tensor.gather(-1, order)), order


@dataclass(frozen=True)
class StateSpec:
    """How big a memory is, per example: never a function of the context's length.

    Attributes:
        kind: "prefix", "matrix", "keyvalue", "lowrank", "empty", or a plugin's own name.
        shapes: tensor name -> shape behind the batch axis.
        layers: backbone layers that the leading L axis stands for; () where there is none.
        dtype: of every tensor, but for `mask` (bool) and `next_position` (int64) of "keyvalue".
        bounded: False only for baselines that keep everything; their shapes are those of an empty state.

    Raises:
        ContractViolation: a shared kind has other tensor names or axes than `KINDS` says.
    """

    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    bounded: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            return
        required, optional = KINDS[self.kind]
        axes = {name: len(shape) for name, shape in self.shapes.items()}
        allowed = {**required, **optional}
        if not required.keys() <= axes.keys() or any(allowed.get(n) != a for n, a in axes.items()):
            raise ContractViolation(
                f"a '{self.kind}' state has the tensors {dict(required)} and may have "
                f"{dict(optional)} (name: axes behind the batch), but this spec has {axes}"
            )

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of the tensor `name`."""
        return _EXACT_DTYPES.get((self.kind, name), self.dtype)

    def admits(self, other: StateSpec) -> bool:
        """Whether a state of `other` can stand where one of this was declared."""
        return self == other or (not self.bounded and self.kind == other.kind)

    @property
    def floats(self) -> int:
        """Numbers per example, over all tensors."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        """Bytes per example, over all tensors."""
        return sum(prod(s) * self.dtype_of(n).itemsize for n, s in self.shapes.items())


@dataclass(frozen=True)
class MemoryState:
    """What crosses from WRITE to READ: tensors, nothing else.

    Attributes:
        spec: kind and shapes.
        tensors: name -> (B, *spec.shapes[name]).

    Raises:
        ContractViolation: a tensor is missing, unknown, or has another shape or dtype than the spec says.
    """

    spec: StateSpec
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.tensors.keys() != self.spec.shapes.keys():
            raise ContractViolation(
                f"a '{self.spec.kind}' state should have the tensors {sorted(self.spec.shapes)}, "
                f"but has {sorted(self.tensors)}"
            )
        for name, tensor in self.tensors.items():
            shape, dtype = tuple(self.spec.shapes[name]), self.spec.dtype_of(name)
            if not tensor.ndim or tensor.shape[1:] != shape or tensor.dtype != dtype:
                raise ContractViolation(
                    f"state tensor '{name}' should be (B, {', '.join(map(str, shape))}) {dtype}, "
                    f"but is {tuple(tensor.shape)} {tensor.dtype}"
                )
        if len({tensor.shape[0] for tensor in self.tensors.values()}) > 1:
            raise ContractViolation("the tensors of a state disagree about the batch size")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def batch_size(self) -> int | None:
        """B; None for a state without tensors, which fits any batch."""
        return next((tensor.shape[0] for tensor in self.tensors.values()), None)

    @property
    def floats(self) -> int:
        """Numbers held, measured from the tensors, all rows together."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes held, measured from the tensors, all rows together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        """The same shape-preserving change applied to every tensor."""
        return replace(self, tensors={name: change(t) for name, t in self.tensors.items()})

    def to(self, device: torch.device | str) -> MemoryState:
        """A copy on `device` (the same tensors where they are there already)."""
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> MemoryState:
        """The same numbers without their graph."""
        return self.map(torch.detach)

    def clone(self) -> MemoryState:
        """A copy that shares no memory with this one."""
        return self.map(torch.clone)

    def rows(self, index: Tensor | slice) -> MemoryState:
        """The rows (users, documents) that `index` names."""
        return self.map(lambda tensor: tensor[index])

    @staticmethod
    def stack(states: Sequence[MemoryState]) -> MemoryState:
        """The rows of several states of one spec, in one batch.

        Raises:
            ContractViolation: the specs differ.
        """
        spec = states[0].spec
        if any(state.spec != spec for state in states):
            raise ContractViolation("only states of one spec can be stacked")
        return MemoryState(
            spec, {name: torch.cat([s.tensors[name] for s in states]) for name in spec.shapes}
        )
