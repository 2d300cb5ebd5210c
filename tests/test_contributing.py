"""CONTRIBUTING.md keeps its word: the plugin printed there works as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The printed module and the entry point of the printed pyproject.toml, as pip would install them."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (project,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (module,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ((entry, name),) = re.findall(r"\[project.entry-points.memwrite\]\n(\w+) = \"(\w+)\"", project)
    (tmp_path / f"{name}.py").write_text(module)
    info = tmp_path / "memwrite_segments-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: memwrite-segments\nVersion: 0.1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[memwrite]\n{entry} = {name}\n")
    return tmp_path


def test_the_printed_plugin_is_found_writes_and_is_read(site: Path) -> None:
    params = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = {
        "backbone": {"type": "gpt2", "params": params},
        "writer": {"name": "segments", "params": {"slots": 3}},
        "reader": {"name": "prefix"},
    }
    (site / "config.yaml").write_text(yaml.safe_dump(config))
    (site / "doc.txt").write_text("A context that is longer than the positions of the model. " * 3)

    def memwrite(*words: str) -> str:
        command = [sys.executable, "-m", "memwrite", *words]
        environment = {**os.environ, "PYTHONPATH": str(site), "MEMWRITE_STRICT": "1"}
        done = subprocess.run(
            command, cwd=site, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "segments + prefix" in memwrite("plugins")
    memwrite("write", "config.yaml", "--context", "doc.txt", "--out", "doc.st")
    assert memwrite("ask", "doc.st", "The", "--max-new-tokens", "3")


def test_the_table_of_kinds_is_the_codes(site: Path) -> None:
    """Every shared kind is in the table with the tensor names of `KINDS`."""
    from memwrite.state import KINDS

    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert rows.keys() == KINDS.keys() - {"empty"}
    for kind, (required, _) in KINDS.items():
        assert all(re.search(rf"\b{name}\b", rows[kind]) for name in required if kind != "empty")
