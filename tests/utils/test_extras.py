"""The core runs without the packages of the extras, and says which extra brings what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memwrite.utils.extras import MissingExtra, extra

BLOCK = """
import sys
sys.modules.update(dict.fromkeys(("accelerate", "fsspec", "jinja2", "matplotlib"), None))
"""
CORE = f"""{BLOCK}
import memwrite, memwrite.cli.main, memwrite.evaluation.run, memwrite.stores
from memwrite import Memory
memory = Memory.from_config({{
    "backbone": {{"type": "gpt2", "tokenizer": "characters", "params": {{"n_embd": 8, "n_layer": 1, "n_head": 1}}}},
    "writer": {{"name": "full-context"}}, "reader": {{"name": "key-value"}},
}})
print(memory.ask(memory.write("ab").state, "c", max_new_tokens=1) is not None)
"""


def test_the_core_works_without_any_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr


@pytest.mark.parametrize(
    ("words", "package", "name"),
    [
        (["train", "config.yaml"], "accelerate", "train"),
        (["demo"], "jinja2", "report"),
        (["store", "list", "file:///nowhere"], "fsspec", "stores"),
        (["write", "config.yaml", "--input", "a.jsonl", "--out", "b"], "accelerate", "stores"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    words: list[str], package: str, name: str, tmp_path: Path
) -> None:
    code = f"{BLOCK}\nfrom memwrite.cli.main import main\nmain({words!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.splitlines() == [
        f"Error: the package '{package}' is needed here and not installed: pip install 'memwrite[{name}]'"
    ]
    assert done.returncode == 2


def test_only_missing_packages_are_named() -> None:
    with (
        pytest.raises(MissingExtra, match=r"'nothing_like_it' .* 'memwrite\[train\]'"),
        extra("train"),
    ):
        import nothing_like_it  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ZeroDivisionError), extra("train"):
        _ = 1 / 0
