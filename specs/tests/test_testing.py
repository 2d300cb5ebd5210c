"""The helpers for authors: what the tests of a plugin import is installed with the kit."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import memwrite_specs.testing
import pytest
from hypothesis import given
from memwrite_specs.testing import FAMILIES, MODELS, WINDOW, Rows, padded_rows, query_batches

from memwrite import Tokens

ROOT = Path(__file__).parents[2]
FOLDERS = sorted((ROOT / "plugins").glob("memwrite-*/tests"))


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.parent.name for folder in FOLDERS])
def test_a_plugins_tests_import_what_is_found_outside_the_repository(folder: Path) -> None:
    """They import installed packages and what lies beside them, and nothing of the repository's own tests."""
    beside = {path.stem for path in folder.glob("*.py")}
    ours = {path.stem for path in (ROOT / "tests").rglob("*.py")} - beside
    for path in folder.rglob("*.py"):
        for name in imported(path) - beside:
            assert name not in ours, f"{path.name} imports {name}"
            assert importlib.util.find_spec(name) is not None, f"{path.name} imports {name}"


def imported(path: Path) -> set[str]:
    """Return the top names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_everything_that_is_named_is_there() -> None:
    names = memwrite_specs.testing.__all__
    assert all(hasattr(memwrite_specs.testing, name) for name in names)
    source = Path(memwrite_specs.testing.__file__).read_text()
    listed = [
        alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(listed) == sorted(names)


@given(padded_rows())
def test_padding_hides_no_token(drawn: tuple[Rows, Tokens]) -> None:
    rows, tokens = drawn
    found = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert found == rows
    assert any(rows)


@given(query_batches(longest=3))
def test_query_batches_hold_their_rows(drawn: tuple[Rows, Tokens]) -> None:
    rows, tokens = drawn
    assert tokens.ids.ndim == 3
    flat = zip(tokens.ids.flatten(0, 1), tokens.mask.flatten(0, 1), strict=True)
    assert [ids[mask].tolist() for ids, mask in flat] == rows
    assert all(len(row) <= 3 for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_shorter_than_rows(family: str) -> None:
    assert MODELS.keys() <= FAMILIES.keys()
    assert FAMILIES[family].get("sliding_window", WINDOW) < memwrite_specs.testing.LONGEST
