"""Format 2: a spec says shape, dtype and meaning of the leading axis of every tensor."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from memwrite.config import BackboneConfig, PartConfig, part_config
from memwrite.errors import ConfigError
from memwrite.state import KINDS, StateSpec, TensorSpec

FORMAT = 2
#: The oldest format whose readers understand what is written here.
REQUIRES = 2
DTYPES = (
    "float32", "float64", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A `TensorSpec` as plain data."""

    shape: list[int]
    dtype: str | None
    per_layer: bool


@dataclass(frozen=True)
class StoredSpec:
    """A `StateSpec` as plain data."""

    kind: str
    tensors: dict[str, StoredTensor]
    layers: list[int]
    dtype: str
    bounded: bool

    @classmethod
    def of(cls, spec: StateSpec) -> StoredSpec:
        """Return `spec` as plain data; the inverse of `restore`."""
        tensors = {
            name: StoredTensor(
                list(t.shape), None if t.dtype is None else _dtype_name(t.dtype), t.per_layer
            )
            for name, t in spec.tensors.items()
        }
        return cls(spec.kind, tensors, list(spec.layers), _dtype_name(spec.dtype), spec.bounded)

    def restore(self) -> StateSpec:
        """Return the spec that was stored.

        Raises:
            ConfigError: a dtype or a size is none.
            ContractViolation: the tensors are not those of a declared kind.
        """
        check_sizes([*self.layers, *(size for t in self.tensors.values() for size in t.shape)])
        tensors: dict[str, TensorSpec | tuple[int, ...]] = {
            name: TensorSpec(
                tuple(t.shape), None if t.dtype is None else torch_dtype(t.dtype), t.per_layer
            )
            for name, t in self.tensors.items()
        }
        spec = StateSpec(
            self.kind, tensors, tuple(self.layers), torch_dtype(self.dtype), self.bounded
        )
        _check_kind(spec)
        return spec


@dataclass(frozen=True)
class Header:
    """What a state file says of itself; never the text.

    Attributes:
        format: the version of the format that it was written in.
        requires: the oldest version whose readers understand it.
        spec: the kind of the state, and its tensors.
        fingerprint: names the backbone that the state was written for.
        backbone: the backbone's configuration, a hint where to find it.
        seed: the seed of a backbone that is built from scratch.
        reader: name and parameters of the reader that the state is for.
        writer: name and parameters of the writer that made it.
        created: UTC time, ISO 8601.
        memwrite: version of the library.
        writer_fingerprint: a digest of the writer's weights; "" where it has none or they were not known.
        trained: False where nobody had trained what wrote it, and its states mean less for that; see
            `WriterPlugin.untrained`.
        chat: whether its questions are a user's messages, of which a context in keys and values is the beginning; False
            in older files, whose contexts are mere texts.
    """

    format: int
    requires: int
    spec: StoredSpec
    fingerprint: str
    backbone: dict[str, Any]
    seed: int
    reader: PartConfig
    writer: PartConfig
    created: str
    memwrite: str
    writer_fingerprint: str = ""
    trained: bool = True
    chat: bool = False


def read(data: Mapping[str, Any], where: str) -> Header:
    """Return the header that untrusted data of this format, or of a compatible newer one, make.

    Fields that are not known here are optional ones of newer versions: they are left out with a warning.

    Raises:
        ConfigError: a field is missing or of another type.
    """
    unknown: list[str] = []
    known = _known(Header, data, "", unknown)
    if isinstance(spec := known.get("spec"), Mapping):
        spec = known["spec"] = _known(StoredSpec, spec, "spec.", unknown)
        if isinstance(tensors := spec.get("tensors"), Mapping):
            spec["tensors"] = {
                name: _known(StoredTensor, tensor, f"spec.tensors.{name}.", unknown)
                if isinstance(tensor, Mapping)
                else tensor
                for name, tensor in tensors.items()
            }
    for part, kind in (
        ("backbone", BackboneConfig),
        ("reader", PartConfig),
        ("writer", PartConfig),
    ):
        if isinstance(value := known.get(part), Mapping):
            known[part] = _known(kind, value, f"{part}.", unknown)
    header = part_config(Header, known, "header")
    if unknown:
        warnings.warn(
            f"'{where}' was written by memwrite {header.memwrite}, and what it says of {', '.join(unknown)} is ignored: "
            f"this version does not know it",
            stacklevel=2,
        )
    return header


def check_sizes(sizes: Iterable[object]) -> None:
    """Reject layers and sizes that are no whole numbers from 0 on.

    Raises:
        ConfigError: one is none.
    """
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ConfigError("its layers and shapes are not whole numbers from 0 on")


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        ConfigError: a state cannot have it.
    """
    if name not in DTYPES:
        raise ConfigError(f"the dtype '{name}' is not one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check_kind(spec: StateSpec) -> None:
    """Refuse tensors that the readers of a declared kind would stumble over.

    Raises:
        ConfigError: one has another dtype than its kind says, or is not per layer where its kind is.
    """
    kind = KINDS.get(spec.kind)
    if kind is None:
        return
    for name, tensor in spec.tensors.items():
        dtype = spec.dtype_of(name)
        if kind.dtypes.get(name, dtype) != dtype:
            raise ConfigError(
                f"the tensor '{name}' of a '{spec.kind}' state is {kind.dtypes[name]}, not {dtype}"
            )
        if kind.axes.get(name, ())[:1] == ("L",) and not tensor.per_layer:
            raise ConfigError(f"the tensor '{name}' of a '{spec.kind}' state is per layer")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _known(
    kind: type[Any], data: Mapping[str, Any], prefix: str, unknown: list[str]
) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    unknown += [f"'{prefix}{name}'" for name in data if name not in names]
    return {name: value for name, value in data.items() if name in names}
