"""The helpers for authors: what the tests of a plugin import is installed with the kit."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import memwrite_specs.testing
import pytest
from hypothesis import given
from memwrite_specs.testing import FAMILIES, MODELS, WINDOW, Rows, padded_rows, query_batches

from memwrite import Tokens

ROOT = Path(__file__).parents[2]


def test_the_plugins_own_tests_are_found_outside_the_repository(tmp_path: Path) -> None:
    """Copied elsewhere, they import nothing but installed packages and what lies beside them."""
    paths = []
    for folder in (ROOT / "plugins").glob("memwrite-*/tests"):
        copy = tmp_path / folder.parent.name / "tests"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        paths.append(str(copy))
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_everything_that_is_named_is_there() -> None:
    names = memwrite_specs.testing.__all__
    assert all(hasattr(memwrite_specs.testing, name) for name in names)
    source = Path(memwrite_specs.testing.__file__).read_text()
    imported = [
        alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == sorted(names)


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
