"""State files: checksummed safetensors with a validated header. Files are untrusted input."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import memwrite
from memwrite.build import Components
from memwrite.checkpoints import container
from memwrite.config import PartConfig, part_config, to_dict
from memwrite.errors import ConfigError, ContractViolation, StorageError
from memwrite.state import MemoryState, StateSpec
from memwrite.utils.atomic import write_bytes

FORMAT = 1
_DTYPES = (
    "float32", "float64", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class StoredSpec:
    """A `StateSpec` as plain data."""

    kind: str
    shapes: dict[str, list[int]]
    layers: list[int]
    dtype: str
    bounded: bool

    @classmethod
    def of(cls, spec: StateSpec) -> StoredSpec:
        shapes = {name: list(shape) for name, shape in spec.shapes.items()}
        dtype = str(spec.dtype).removeprefix("torch.")
        return cls(spec.kind, shapes, list(spec.layers), dtype, spec.bounded)

    def restore(self) -> StateSpec:
        if self.dtype not in _DTYPES:
            raise ConfigError(f"spec.dtype '{self.dtype}' is not one of {', '.join(_DTYPES)}")
        numbers = [*self.layers, *(size for shape in self.shapes.values() for size in shape)]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ConfigError("spec.layers and spec.shapes are not whole numbers from 0 on")
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        dtype = getattr(torch, self.dtype)
        return StateSpec(self.kind, shapes, tuple(self.layers), dtype, self.bounded)


@dataclass(frozen=True)
class Header:
    """What a state file says of itself; never the text.

    Attributes:
        format: version of this format.
        spec: kind and shapes.
        fingerprint: of the backbone the state was written for.
        backbone: its configuration, a hint where to find it.
        seed: of a backbone built from scratch.
        reader: name and parameters of the reader it is for.
        writer: name and parameters of the writer that made it.
        created: UTC time, ISO 8601.
        memwrite: version of the library.
        writer_fingerprint: of the writer's weights; "" where it has none.
    """

    format: int
    spec: StoredSpec
    fingerprint: str
    backbone: dict[str, Any]
    seed: int
    reader: PartConfig
    writer: PartConfig
    created: str
    memwrite: str
    writer_fingerprint: str = ""


@dataclass(frozen=True)
class StateFile:
    """A state file in memory: header, state, and the reader's weights."""

    header: Header
    state: MemoryState
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """State and weights by the names that they have in a file."""
        return {
            **{f"state.{name}": tensor for name, tensor in self.state.tensors.items()},
            **{f"reader.{name}": tensor for name, tensor in self.weights.items()},
        }


def save_state(path: str | Path, file: StateFile) -> None:
    """Write `file`, all or nothing: to a temporary name beside `path`, then renamed.

    Raises:
        StorageError: the place cannot be written.
    """
    header = json.dumps(to_dict(file.header), sort_keys=True)
    write_bytes(Path(path), container.pack(header, file.tensors, str(path)))


def load_state(path: str | Path) -> StateFile:
    """Read and check a state file, on the CPU.

    Raises:
        StorageError: it is missing, truncated, damaged or not a memwrite state.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise StorageError(f"no state file at '{path}'") from None
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None
    return restored(*container.unpack(data, str(path)), str(path))


def restored(header: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> StateFile:
    """The state file that `header` and `tensors`, both untrusted, make together.

    Raises:
        StorageError: they make none.
    """
    checked = read_header(header, where)
    try:
        state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
        weights = {
            n.removeprefix("reader."): t for n, t in tensors.items() if n.startswith("reader.")
        }
        return StateFile(checked, MemoryState(checked.spec.restore(), state), weights)
    except (ConfigError, ContractViolation) as error:
        raise StorageError(f"'{where}' has a header that does not fit: {error}") from None


def read_header(data: Mapping[str, Any], where: str) -> Header:
    """The header that plain, untrusted data make.

    Raises:
        StorageError: they make none.
    """
    try:
        return _header(data)
    except (ConfigError, RecursionError) as error:
        raise StorageError(f"'{where}' has a header that does not fit: {error}") from None


def header_of(memory: Components, state: MemoryState, writer_fingerprint: str) -> Header:
    """Describe a state that `memory` wrote, or was opened with."""
    config = memory.config
    backbone = config.backbone
    if backbone.path is not None and Path(backbone.path).is_dir():
        backbone = replace(backbone, path=str(Path(backbone.path).resolve()))
    return Header(
        format=FORMAT,
        spec=StoredSpec.of(state.spec),
        fingerprint=memory.backbone.fingerprint,
        backbone=to_dict(backbone),
        seed=config.seed,
        reader=config.reader,
        writer=config.writer,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        memwrite=memwrite.__version__,
        writer_fingerprint=writer_fingerprint,
    )


def _header(data: Mapping[str, Any]) -> Header:
    if data.get("format") != FORMAT:
        raise ConfigError(f"format {data.get('format')!r}, but this memwrite reads {FORMAT}")
    if "${" in json.dumps(data):
        raise ConfigError("it holds an interpolation, and a header must be data only")
    return part_config(Header, data, "header")
