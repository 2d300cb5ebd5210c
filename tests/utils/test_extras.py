"""The core runs without the packages of the extras, and says which extra brings what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from memwrite.utils.extras import MissingExtra, extra

WITHOUT_EXTRAS = """
import json, sys
sys.modules.update(dict.fromkeys(("accelerate", "fsspec", "jinja2", "matplotlib", "psycopg"), None))
import memwrite, memwrite.evaluation.run, memwrite.stores
from click.testing import CliRunner
from memwrite import Memory
from memwrite.cli.main import main
memory = Memory.from_config({
    "backbone": {"type": "gpt2", "tokenizer": "characters", "params": {"n_embd": 8, "n_layer": 1, "n_head": 1}},
    "writer": {"name": "full-context"}, "reader": {"name": "key-value"},
})
answer = memory.ask(memory.write("ab").state, "c", max_new_tokens=1)
results = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps({"answer": answer, "results": [[r.exit_code, r.stderr] for r in results]}))
"""
COMMANDS = [
    (["train", "config.yaml"], "accelerate", "train"),
    (["demo"], "jinja2", "report"),
    (["store", "list", "file:///nowhere"], "fsspec", "stores"),
    (["store", "list", "postgresql://nobody@nowhere/none"], "psycopg", "postgres"),
    (["write", "config.yaml", "--input", "a.jsonl", "--out", "b"], "fsspec", "stores"),
]


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a process without these packages answers, and how each command ends in it."""
    words = json.dumps([words for words, _, _ in COMMANDS])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, words],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("without"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_the_core_works_without_any_extra(without_extras: dict[str, Any]) -> None:
    assert isinstance(without_extras["answer"], str)


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_a_command_names_the_extra_that_it_lacks(
    without_extras: dict[str, Any], index: int
) -> None:
    _, package, name = COMMANDS[index]
    exit_code, error = without_extras["results"][index]
    assert error.splitlines() == [
        f"Error: the package '{package}' is needed here and not installed: pip install 'memwrite[{name}]'"
    ]
    assert exit_code == 2


def test_only_missing_packages_are_named() -> None:
    with (
        pytest.raises(MissingExtra, match=r"'nothing_like_it' .* 'memwrite\[train\]'"),
        extra("train"),
    ):
        import nothing_like_it  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ZeroDivisionError), extra("train"):
        _ = 1 / 0
