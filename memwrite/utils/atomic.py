"""Atomic writing of files: a reader sees either the old content or all of the new one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from memwrite.errors import StorageError


def make_folder(path: Path) -> None:
    """Make the folder `path` and its parents, where they do not exist.

    Raises:
        StorageError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder '{path}' cannot be made: {error.strerror}") from None


def check_target(path: Path, *inputs: str | Path) -> None:
    """Refuse a path that `write_bytes` would refuse, before any work is done for it.

    Args:
        path: the file that will be written.
        inputs: the files that the work reads, none of which `path` may replace.

    Raises:
        StorageError: there is no folder for the file, it may not be written, is no regular file, or is one of the inputs.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise StorageError(f"'{path}' cannot be written: there is no folder '{target.parent}'")
    if not os.access(target.parent, os.W_OK):
        raise StorageError(f"'{path}' cannot be written: its folder may not be written to")
    _mode_of(path)
    for source in inputs:
        if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
            raise StorageError(f"'{path}' cannot be written: it is also read, so name another file")


def write_bytes(path: Path, data: bytes, private: bool = False) -> None:
    """Write `data` so that `path` holds either its old content or all of the new one.

    A link is followed, and its target is replaced. An existing file keeps its mode.

    Args:
        path: where to write.
        data: what to write.
        private: whether only its owner may read a new file; by default the umask decides.

    Raises:
        StorageError: `path` cannot be written, or is no regular file.
    """
    try:
        mode = _mode_of(path)
        target = Path(os.path.realpath(path))
        name = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        descriptor = os.open(name, flags, 0o600 if private else 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(name, mode)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from None


def _mode_of(path: Path) -> int | None:
    """Return the permissions of the file at `path`, following links; None if there is no file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise StorageError(f"'{path}' cannot be written: it is no regular file")
    return stat.S_IMODE(mode)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn the errors of a library that writes files into `folder` by itself into a `StorageError`.

    Raises:
        StorageError: the library cannot write.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # the last one is torch's
        raise StorageError(
            f"'{folder}' cannot be written: {' '.join(str(error).split())}"
        ) from None
