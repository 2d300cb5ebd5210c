"""The core knows no plugin, and importing the package waits for nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memwrite

CORE = Path(memwrite.__file__).parent


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: str(p.relative_to(CORE)))
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
