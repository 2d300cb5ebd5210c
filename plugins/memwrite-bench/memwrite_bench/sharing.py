"""Pieces of work that several processes do together: each claims a free one, and what is done stays done."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from memwrite.errors import StorageError
from memwrite.utils.atomic import make_folder
from memwrite.utils.progress import track

CELLS, LOCKS = "cells", "locks"
_AT_ONCE, _FOREVER = 0, -1


def share(
    work: Mapping[str, Callable[[], object]], done: Callable[[str], bool], folder: Path, label: str
) -> None:
    """Do what has not been done, beside any other process that does the same.

    What another process has claimed is left to it; when nothing else is left, it is waited for, and taken over if
    that process ends. Work that is interrupted is done again by whoever comes next.

    Args:
        work: by names that are fit for files.
        done: says whether the work of that name is done.
        folder: gets a folder for claims, and one that the results may go to.
        label: of the progress bar.

    Raises:
        StorageError: the folder cannot be written.
    """
    for part in (CELLS, LOCKS):
        make_folder(folder / part)
        if not os.access(folder / part, os.W_OK):
            raise StorageError(f"the folder '{folder / part}' cannot be written")
    pending = [name for name in work if not done(name)]
    for patience, title in ((_AT_ONCE, label), (_FOREVER, "others' work")):
        claimed = []
        for name in track(pending, title, "cell"):
            try:
                with FileLock(folder / LOCKS / name, timeout=patience):
                    if not done(name):
                        work[name]()
            except Timeout:
                claimed.append(name)
        pending = claimed
