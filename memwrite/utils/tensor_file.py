"""Safetensors files as bytes that depend on nothing but their content."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file; the same tensors and metadata always give the same bytes.

    The safetensors package alone does not promise that: it writes the metadata in the order of a hash table that has
    another seed each time.

    Args:
        tensors: by name, on any device.
        metadata: texts by name; they are written in the order of their names.
    """
    data = memoryview(safetensors.torch.save(dict(tensors)))
    size = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(bytes(data[8:size]))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return b"".join([len(text).to_bytes(8, "little"), text, data[size:]])
