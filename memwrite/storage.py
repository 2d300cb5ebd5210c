"""State files: safetensors with a validated header and a checksum. Files are untrusted input."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from memwrite.config import PartConfig, part_config, to_dict
from memwrite.errors import ConfigError, ContractViolation, StorageError
from memwrite.state import MemoryState, StateSpec

FORMAT = 1
MAX_HEADER = 1 << 20
_UNSEALED = b"0" * 64
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


@dataclass(frozen=True)
class StateFile:
    """A state file in memory: header, state, and the reader's weights."""

    header: Header
    state: MemoryState
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def save_state(path: str | Path, file: StateFile) -> None:
    """Write `file`, all or nothing: to a temporary name beside `path`, then renamed.

    Raises:
        StorageError: the place cannot be written.
    """
    tensors = {
        **{f"state.{name}": tensor for name, tensor in file.state.tensors.items()},
        **{f"reader.{name}": tensor for name, tensor in file.weights.items()},
    }
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = json.dumps(to_dict(file.header), sort_keys=True)
    if len(header) > MAX_HEADER // 2:
        raise StorageError(f"the header of '{path}' would be {len(header)} bytes, over the limit")
    write_bytes(Path(path), sealed(header, tensors))


def sealed(header: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file whose metadata hold `header` and a checksum of the whole file.

    The checksum is the sha256 of the file with zeros in the checksum's own place.
    """
    data = safetensors.torch.save(
        dict(tensors), {"memwrite": header, "checksum": _UNSEALED.decode()}
    )
    return data.replace(_UNSEALED, hashlib.sha256(data).hexdigest().encode(), 1)


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
    metadata = _metadata(data, path)
    checksum = str(metadata.get("checksum")).encode()
    unsealed = data.replace(checksum, _UNSEALED, 1)
    if checksum != hashlib.sha256(unsealed).hexdigest().encode():
        raise StorageError(f"'{path}' is truncated or damaged: its checksum does not match")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise StorageError(f"'{path}' is no safetensors file: {error}") from None
    try:
        header = _header(metadata["memwrite"])
        state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
        weights = {
            n.removeprefix("reader."): t for n, t in tensors.items() if n.startswith("reader.")
        }
        return StateFile(header, MemoryState(header.spec.restore(), state), weights)
    except (ConfigError, ContractViolation, RecursionError) as error:
        raise StorageError(f"'{path}' has a header that does not fit: {error}") from None


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it, where they are not there.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder '{path}' cannot be made: {error.strerror}") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of it.

    Raises:
        StorageError: the place cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from None


def _metadata(data: bytes, path: str | Path) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER or data[8:9] != b"{":
        raise StorageError(f"'{path}' is not a memwrite state file")
    if 8 + size > len(data):
        raise StorageError(f"'{path}' is truncated: it ends within its header")
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
    except (ValueError, RecursionError):
        raise StorageError(f"'{path}' is damaged: its header is not JSON") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("memwrite"), str):
        raise StorageError(f"'{path}' is a safetensors file, but not a memwrite state")
    return metadata


def _header(text: str) -> Header:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"it is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError("it is not a JSON object")
    if data.get("format") != FORMAT:
        raise ConfigError(f"format {data.get('format')!r}, but this memwrite reads {FORMAT}")
    if "${" in json.dumps(data):  # not in `text`, which may spell it with escapes
        raise ConfigError("it holds an interpolation, and a header must be data only")
    return part_config(Header, data, "header")
