"""What a write does to what is there: all or nothing, links followed, modes kept, nothing but files replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from memwrite.errors import StorageError
from memwrite.utils.atomic import check_target, write_bytes


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Let groups read what the umask alone decides."""
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("private", "expected"), [(True, 0o600), (False, 0o640)])
def test_a_new_file_is_private_or_as_the_umask_says(
    tmp_path: Path, private: bool, expected: int
) -> None:
    write_bytes(tmp_path / "a", b"x", private)
    assert mode(tmp_path / "a") == expected


@pytest.mark.parametrize("old", [0o600, 0o644, 0o660])
@pytest.mark.parametrize("private", [True, False])
def test_a_file_keeps_its_mode(tmp_path: Path, private: bool, old: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(old)
    write_bytes(path, b"new", private)
    assert (path.read_bytes(), mode(path)) == (b"new", old)


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path: Path, there: bool) -> None:
    """Also one to a file that is not there yet, and one to a link."""
    (tmp_path / "inner").mkdir()
    target, link, outer = tmp_path / "inner" / "target", tmp_path / "link", tmp_path / "outer"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    outer.symlink_to("link")
    write_bytes(outer, b"new")
    assert outer.is_symlink()
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["inner", "link", "outer"]
    assert os.listdir(tmp_path / "inner") == ["target"]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe or a device would be replaced by a file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "link", Path("/dev/null")):
        before = path.stat().st_mode
        for act in (
            lambda path=path: write_bytes(path, b"x"),
            lambda path=path: check_target(path),
        ):
            with pytest.raises(StorageError, match=r"cannot be written: it is no regular file"):
                act()
        assert path.stat().st_mode == before


def test_targets_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "link").symlink_to("text")
    check_target(tmp_path / "new", tmp_path / "text", "-")
    check_target(tmp_path / "text")
    with pytest.raises(StorageError, match="there is no folder"):
        check_target(tmp_path / "none" / "new")
    for source, out in (("text", "text"), ("text", "link"), ("link", "text")):
        with pytest.raises(StorageError, match="it is also read"):
            check_target(tmp_path / out, tmp_path / source)
