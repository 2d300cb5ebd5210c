"""Models that were converted from a file, kept in a folder of the user's cache: one folder for each content of a file.

A folder appears by renaming, when all is in it, and is used only while its files have the sizes that they had then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from memwrite.errors import StorageError
from memwrite.utils.progress import announce

_SIZES = "sizes.json"
_PARTIAL = ".converting."


def cache_folder() -> Path:
    """Return where converted models are kept: $MEMWRITE_CACHE, or `memwrite` in the platform's folder for caches."""
    if given := os.environ.get("MEMWRITE_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "memwrite"


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file, as 64 hex digits.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from None


def converted(path: Path, digest: str, version: int, convert: Callable[[Path, Path], None]) -> Path:
    """Return the folder that `path` is converted into, and convert it if that has not been done.

    Args:
        path: the file.
        digest: its sha256.
        version: of the conversion.
        convert: writes the model in a file, given first, into a folder.

    Raises:
        StorageError: the cache cannot be written.
        MemwriteError: what `convert` raises.
    """
    cache = cache_folder()
    folder = cache / f"{digest[:32]}-v{version}"
    if _is_whole(folder):
        return folder
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not _is_whole(folder):  # another process may have made it while this one waited
                announce(
                    f"Converting '{path.name}' into '{folder}' (once; a minute or less for a small model)"
                )
                _make(path, folder, convert)
    except OSError as error:
        raise StorageError(
            f"'{path}' cannot be converted into '{folder}': {error.strerror or error}; MEMWRITE_CACHE names another "
            f"folder for converted models"
        ) from None
    return folder


def _make(path: Path, folder: Path, convert: Callable[[Path, Path], None]) -> None:
    prefix = f"{_PARTIAL}{folder.name}."
    for left in folder.parent.glob(f"{prefix}*"):  # by a process that was killed: we hold its lock
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))  # for its owner alone
    try:
        convert(path, made)
        sizes = {file.name: file.stat().st_size for file in made.iterdir()}
        for name in sizes:
            with (made / name).open("rb+") as file:
                os.fsync(file.fileno())
        (made / _SIZES).write_text(json.dumps(sizes))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _SIZES).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False
