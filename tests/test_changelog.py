"""Changelog fragments are named as changelog.d/README.md says, and become a section."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "changelog.d"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assemble", FOLDER / "assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fragments_of_the_next_version_have_known_kinds(script: ModuleType) -> None:
    for path in FOLDER.glob("*.md"):
        assert path.name == "README.md" or path.name.split(".")[-2] in script.KINDS


def test_fragments_become_a_section_by_kind(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not a fragment")
    (tmp_path / "b.fixed.md").write_text("A crash\nis gone.\n")
    (tmp_path / "a.added.md").write_text("A command.")
    assert script.assemble(tmp_path, "1.0") == (
        "## 1.0\n\n### Added\n\n- A command.\n\n### Fixed\n\n- A crash is gone.\n"
    )


def test_a_section_goes_before_the_latest_one(script: ModuleType) -> None:
    before = "# Changelog\n\nAbout it.\n\n## 0.1\n\n- First.\n"
    after = "# Changelog\n\nAbout it.\n\n## 0.2\n\n- Second.\n\n## 0.1\n\n- First.\n"
    assert script.insert(before, "## 0.2\n\n- Second.\n") == after


def test_unknown_kinds_and_no_fragments_are_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fragment"):
        script.assemble(tmp_path, "1.0")
    (tmp_path / "a.improved.md").write_text("Better.")
    with pytest.raises(ValueError, match=r"NAME\.KIND\.md"):
        script.assemble(tmp_path, "1.0")
