"""Safetensors files with a header of plain data and a checksum over every byte. Opened files are untrusted input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from memwrite.errors import StorageError
from memwrite.utils.tensor_file import to_bytes

MAX_HEADER = 1 << 20
_NO_CHECKSUM = b"0" * 64


def pack(header: str, tensors: Mapping[str, Tensor], where: str) -> bytes:
    """Make a safetensors file whose metadata hold `header` and a checksum.

    The checksum is the sha256 of the file with zeros in the checksum's own place.

    Args:
        header: a JSON object.
        tensors: the tensors by name; they are copied to the CPU.
        where: where the file is to go, for messages.

    Raises:
        StorageError: the header is too long to be opened again.
    """
    if len(header) > MAX_HEADER // 2:
        raise StorageError(f"the header of '{where}' would be {len(header)} bytes, over the limit")
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {"memwrite": header, "checksum": _NO_CHECKSUM.decode()}
    data = to_bytes(copies, metadata)
    return data.replace(_NO_CHECKSUM, hashlib.sha256(data).hexdigest().encode(), 1)


def unpack(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors, on the CPU.

    Args:
        data: the whole file.
        where: where it comes from, for messages.

    Raises:
        StorageError: the file is truncated, damaged or not made by `pack`.
    """
    metadata = _metadata(data, where)
    checksum = str(metadata.get("checksum")).encode()
    if checksum != hashlib.sha256(data.replace(checksum, _NO_CHECKSUM, 1)).hexdigest().encode():
        raise StorageError(f"'{where}' is truncated or damaged: its checksum does not match")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise StorageError(f"'{where}' is no safetensors file: {error}") from None
    try:
        header = json.loads(metadata["memwrite"])
    except (ValueError, RecursionError):
        raise StorageError(f"'{where}' is damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise StorageError(f"'{where}' is damaged: its header is not a JSON object")
    return header, tensors


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _metadata(data: bytes, where: str) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER or data[8:9] != b"{":
        raise StorageError(f"'{where}' is not a memwrite state file")
    if 8 + size > len(data):
        raise StorageError(f"'{where}' is truncated: it ends within its header")
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
    except (ValueError, RecursionError):
        raise StorageError(f"'{where}' is damaged: its header is not JSON") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("memwrite"), str):
        raise StorageError(f"'{where}' is a safetensors file, but not a memwrite state")
    return metadata
