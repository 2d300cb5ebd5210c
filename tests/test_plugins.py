"""Discovery: every fault is named with its owner and stops nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memwrite.errors import PluginApiMismatch, PluginBroken, PluginConflict, PluginNotFound
from memwrite.plugins import Owner, ReaderPlugin, Registry, WriterPlugin, discover, hookimpl


@dataclass(frozen=True)
class Params:
    pass


WRITER = WriterPlugin(1, "w", "a writer", Params, lambda c, b: None, "prefix")  # type: ignore[arg-type,return-value]
READER = ReaderPlugin(
    1, "r", "a reader", Params, lambda c, b, s: None, frozenset({"prefix"})  # type: ignore[arg-type,return-value]
)  # fmt: skip


def module(writers: Any = (), readers: Any = ()) -> SimpleNamespace:
    def give(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    return SimpleNamespace(
        memwrite_writers=hookimpl(lambda: give(writers)),
        memwrite_readers=hookimpl(lambda: give(readers)),
    )


def registry(**modules: Any) -> Registry:
    def loader(value: Any) -> Any:
        def load() -> Any:
            if isinstance(value, BaseException):
                raise value
            return value

        return load

    return discover((Owner(name, "1.0", name), loader(m)) for name, m in modules.items())


def test_healthy_plugins_are_found_with_the_pairs_that_fit() -> None:
    other = replace(READER, name="other", accepts=frozenset({"matrix"}))
    found = registry(a=module([WRITER]), b=module(readers=[READER, other]))
    assert found.writer("w") is WRITER
    assert found.pairs() == [(WRITER, READER)]
    assert found.faults == []


@pytest.mark.parametrize(
    ("broken", "words", "kind"),
    [
        (
            ImportError("no module named x"),
            "could not be imported: ImportError: no module",
            PluginBroken,
        ),
        (SystemExit(3), "could not be imported: SystemExit", PluginBroken),
        (
            module(RuntimeError("bad luck")),
            "memwrite_writers(): RuntimeError: bad luck",
            PluginBroken,
        ),
        (module(["nonsense"]), "returned a str, not a WriterPlugin", PluginBroken),
        (module(7), "memwrite_writers()", PluginBroken),
        (module([READER]), "returned a ReaderPlugin", PluginBroken),
        (module([replace(WRITER, api=2)]), "built for plugin API 2", PluginApiMismatch),
        (module([replace(WRITER, config=dict)]), "must be a dataclass", PluginBroken),
        (module([replace(WRITER, capabilities=frozenset({"magic"}))]), "'magic'", PluginBroken),
        (
            SimpleNamespace(memwrite_writer=hookimpl(lambda: [WRITER])),
            "memwrite_writer",
            PluginBroken,
        ),
    ],
)
def test_a_broken_plugin_is_named_and_stops_nobody(broken: Any, words: str, kind: type) -> None:
    found = registry(bad=broken, good=module([replace(WRITER, name="good")]))
    (fault,) = found.broken
    assert isinstance(fault.error, kind)
    assert str(fault.error).startswith("the plugin bad 1.0 ")
    assert words in str(fault.error)
    assert "\n" not in str(fault.error)
    assert "Traceback" in fault.traceback
    assert found.writer("good").name == "good"
    with pytest.raises(kind, match=r"bad 1\.0"):
        found.writer("bad")


def test_a_hook_that_raises_leaves_the_other_hook_alone() -> None:
    found = registry(half=module(RuntimeError("x"), [READER]))
    assert found.reader("r") is READER
    assert len(found.broken) == 1


def test_a_name_provided_twice_is_nobodys() -> None:
    found = registry(
        one=module([WRITER]), two=module([WRITER]), three=module([replace(WRITER, name="v")])
    )
    with pytest.raises(PluginConflict, match=r"'w' is provided by one 1\.0 and two 1\.0"):
        found.writer("w")
    assert found.writer("v").name == "v"
    assert len(found.faults) == 1


def test_an_unknown_name_gets_a_suggestion_and_what_was_not_loaded() -> None:
    found = registry(a=module([replace(WRITER, name="gradient")]), b=ImportError("gone"))
    with pytest.raises(PluginNotFound, match=r"did you mean 'gradient'\?.*not loaded.*b 1\.0"):
        found.writer("gradeint")


def in_process(site: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_strict_mode_and_no_plugins(tmp_path: Path) -> None:
    """Installed for real: strict mode raises at once, MEMWRITE_NO_PLUGINS loads built-ins alone."""
    (tmp_path / "breaking.py").write_text("raise RuntimeError('on import')")
    info = tmp_path / "breaking-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: breaking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[memwrite]\nbreaking = breaking\n")
    code = "from memwrite.plugins import registry; print(*sorted(registry().writers.entries))"
    assert in_process(tmp_path, code).stdout.split() == ["full-context", "gradient", "no-memory"]
    bare = in_process(tmp_path, code, MEMWRITE_NO_PLUGINS="1", MEMWRITE_STRICT="1")
    assert bare.stdout.split() == ["full-context", "no-memory"]
    strict = in_process(tmp_path, code, MEMWRITE_STRICT="1")
    assert strict.returncode == 1
    assert "PluginBroken: the plugin breaking 1.0" in strict.stderr
