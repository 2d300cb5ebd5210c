"""Writing files so that a reader sees either the old content or all of the new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from memwrite.errors import StorageError


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


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """While a library writes files into `folder` in its own way.

    Raises:
        StorageError: it cannot.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # the last one is torch's
        raise StorageError(
            f"'{folder}' cannot be written: {' '.join(str(error).split())}"
        ) from None
