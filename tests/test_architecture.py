"""The shape of the library: no circle of imports, imports run downhill, the core knows no plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import memwrite

CORE = Path(memwrite.__file__).parent
FILES = sorted(CORE.rglob("*.py"))

#: Files and folders of memwrite/, each of which may import those above it.
ORDER = (
    "errors", "utils", "config", "state", "protocols", "modules", "backbones", "tasks", "plugins",
    "build", "inference", "checkpoints", "memory", "session", "convert", "stores", "training",
    "evaluation", "plugins.builtin", "demo", "cli",
)  # fmt: skip
TOP = {"build", "config", "convert", "errors", "memory", "protocols", "session", "state"}


def module(path: Path) -> str:
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@cache
def graph() -> dict[str, frozenset[str]]:
    """What every module imports of memwrite, for types and within functions included."""
    names = {module(path) for path in FILES}
    imports = {}
    for path in FILES:
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (inner & names) or {node.module}
        own = module(path)
        imports[own] = frozenset(
            t for t in targets & names if t != own and not own.startswith(f"{t}.")
        )
    return imports


def room(name: str) -> str:
    inner = name.removeprefix("memwrite.")
    return max((r for r in ORDER if inner == r or inner.startswith(f"{r}.")), key=len, default="")


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_run_downhill() -> None:
    """`memwrite` itself and `python -m memwrite` stand above all."""
    uphill = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if name not in ("memwrite", "memwrite.__main__")
        and ORDER.index(room(target)) > ORDER.index(room(name))
    ]
    assert uphill == []


def test_a_circle_and_an_uphill_import_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**graph(), "memwrite.errors": frozenset({"memwrite.memory"})}
    monkeypatch.setattr(sys.modules[__name__], "graph", lambda: broken)
    with pytest.raises(pytest.fail.Exception, match=r"memwrite\.memory"):
        test_no_modules_import_each_other_in_a_circle()
    with pytest.raises(AssertionError, match=r"memwrite\.errors imports memwrite\.memory"):
        test_imports_run_downhill()


def test_eight_files_at_the_top_tell_the_story() -> None:
    top = {path.stem for path in CORE.glob("*.py") if not path.stem.startswith("_")}
    assert top == TOP


@pytest.mark.parametrize(
    "folder",
    [path for path in sorted(CORE.rglob("*")) if path.is_dir() and list(path.glob("*.py"))],
    ids=lambda path: str(path.relative_to(CORE)),
)
def test_every_folder_says_in_one_sentence_what_it_is_for(folder: Path) -> None:
    sentence = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert sentence.split("\n\n")[0].endswith(".")
    assert room(module(folder / "__init__.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_the_core_imports_no_plugin(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not any(name.startswith("memwrite_") for name in names)


@pytest.mark.parametrize("name", ["memwrite", "memwrite.errors", "memwrite.config"])
def test_importing_the_package_does_not_wait_for_torch(name: str) -> None:
    """Nor does its configuration."""
    code = f"import sys, {name}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_what_the_package_offers_is_imported_when_asked_for() -> None:
    offered = [name for name in memwrite.__all__ if name != "__version__"]
    assert [getattr(memwrite, name).__name__ for name in offered] == offered
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = memwrite.nothing_like_it
