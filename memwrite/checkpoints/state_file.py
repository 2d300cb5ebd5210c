"""State files: checksummed safetensors with a validated header. Files are untrusted input."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import memwrite
from memwrite.build import Components
from memwrite.checkpoints import container
from memwrite.checkpoints.formats import (
    FORMAT,
    REQUIRES,
    Header,
    StoredSpec,
    read_header,
    reading_header,
)
from memwrite.config import to_dict
from memwrite.errors import StorageError
from memwrite.state import MemoryState
from memwrite.utils.atomic import write_bytes


@dataclass(frozen=True)
class StateFile:
    """A state file in memory: header, state, and the reader's weights."""

    header: Header
    state: MemoryState
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return state and weights by the names that they have in a file."""
        return {
            **{f"state.{name}": tensor for name, tensor in self.state.tensors.items()},
            **{f"reader.{name}": tensor for name, tensor in self.weights.items()},
        }


def save_state(path: str | Path, file: StateFile) -> None:
    """Write `file`, all or nothing, in the newest format. Only its owner may read a new file.

    Raises:
        StorageError: the place cannot be written.
    """
    data = container.pack(header_text(file.header), file.tensors, str(path))
    write_bytes(Path(path), data, private=True)


def header_text(header: Header, **more: str) -> str:
    """Return a header, and `more` fields beside its own, as the JSON of the newest format."""
    newest = replace(header, format=FORMAT, requires=REQUIRES)
    return json.dumps({**to_dict(newest), **more}, sort_keys=True)


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
    return restore(*container.unpack(data, str(path)), str(path))


def restore(header: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> StateFile:
    """Return the state file that consists of `header` and `tensors`, both untrusted.

    Raises:
        StorageError: the header is not valid, or does not describe the tensors.
    """
    checked = read_header(header, where)
    with reading_header(where):
        state = MemoryState(checked.spec.restore(), container.with_prefix(tensors, "state."))
    return StateFile(checked, state, container.with_prefix(tensors, "reader."))


def header_of(
    memory: Components, state: MemoryState, writer_fingerprint: str, *, trained: bool, chat: bool
) -> Header:
    """Describe a state that `memory` wrote, or was opened with; the last two as in `Header`."""
    config = memory.config
    backbone = config.backbone
    if backbone.path is not None and Path(backbone.path).exists():
        backbone = replace(backbone, path=str(Path(backbone.path).resolve()))
    if backbone.adapter is not None:
        backbone = replace(backbone, adapter=str(Path(backbone.adapter).resolve()))
    return Header(
        format=FORMAT,
        requires=REQUIRES,
        spec=StoredSpec.of(state.spec),
        fingerprint=memory.backbone.fingerprint,
        backbone=to_dict(backbone),
        seed=config.seed,
        reader=config.reader,
        writer=config.writer,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        memwrite=memwrite.__version__,
        writer_fingerprint=writer_fingerprint,
        trained=trained,
        chat=chat,
    )
