"""README and docs keep their word: their Python runs and prints what they say, and every page is in the navigation."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from memwrite_specs import LAWS
from samples import LONGMEMEVAL, MEMORY_AGENT_BENCH

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.plugins import registry
from memwrite.state import KINDS

ROOT = Path(__file__).parents[1]
HOOKS = sorted(p for p in (ROOT / "docs" / "plugins").glob("*.md") if p.name != "index.md")


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    """Forget what an example registers."""
    tables: list[dict[str, Any]] = [table.entries for table in registry().tables]
    tables += [KINDS, LAWS]
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return every fenced block as (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def printed(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    return out.getvalue()


def test_the_python_of_the_readme_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    (_, code), (language, output) = (
        block for block in blocks((ROOT / "README.md").read_text()) if block[0] != "sh"
    )
    assert language == ""
    assert printed(code) == output


def test_the_example_of_a_model_that_is_handed_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "models.md").read_text()
    (code,) = (code for language, code in blocks(page) if language == "python")
    assert printed(code).startswith("MemoryState(keyvalue: keys (1, ")
    assert Memory.load("normans.safetensors")[1].batch_size == 1


def test_the_page_on_comparing_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page runs on the files that it shows, and leaves a report without a failure."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / "docs" / "comparing.md").read_text())
    files = [content for language, content in found if language != "sh"]
    for name, content in zip(("places.jsonl", "compare.yaml", "learn.yaml"), files, strict=True):
        Path(name).write_text(content)
    for command in (content for language, content in found if language == "sh"):
        program, *words = shlex.split(command)
        result = CliRunner().invoke(main, words)
        assert program == "memwrite"
        assert result.exit_code == 0, result.output
        report = json.loads(Path(words[-1], "report.json").read_text())
        assert all(row["mean"] is not None and not row["failures"] for row in report["rows"])


def test_the_page_on_benchmarks_of_others_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands and its loop run on small files of the benchmarks' forms, with a small model."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / "docs" / "harness.md").read_text())
    (config,) = (content for language, content in found if language == "yaml")
    Path("longmemeval.yaml").write_text(config.replace("smollm2-135m", "models/tiny-lm"))
    Path("longmemeval_oracle.json").write_text(json.dumps(LONGMEMEVAL))
    write_table(pyarrow.Table.from_pylist(MEMORY_AGENT_BENCH[1:3]), "Conflict_Resolution.parquet")
    (commands,) = (content for language, content in found if language == "sh")
    for command, questions in zip(commands.splitlines(), (2, 2), strict=True):
        result = CliRunner().invoke(main, [*shlex.split(command)[1:], "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["memory"]["questions"] == questions
    (loop,) = (content for language, content in found if language == "python")
    printed(loop)
    said = [json.loads(line) for line in Path("hypotheses.jsonl").read_text().splitlines()]
    assert [each["question_id"] for each in said] == ["a1", "a2_abs"]
    assert all(each["hypothesis"] for each in said)


@pytest.mark.parametrize("page", HOOKS, ids=lambda page: page.stem)
def test_the_example_of_a_hook_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block is a module of the name that the text gives; the last one uses it."""
    text = page.read_text()
    python = [code for language, code in blocks(text) if language == "python"]
    outputs = [content for language, content in blocks(text) if not language]
    module = re.findall(r"`(\w+)\.py`", text)[0]
    (tmp_path / f"{module}.py").write_text(python[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    try:
        assert printed(python[1]) == outputs[0]
    finally:
        sys.modules.pop(module, None)


def test_every_hook_has_a_page() -> None:
    """The table of hooks names every hook and page; the tutorial is of several."""
    from memwrite.plugins.hooks import Hooks

    hooks = {name for name in vars(Hooks) if name.startswith("memwrite_")}
    text = (ROOT / "docs" / "plugins" / "index.md").read_text()
    assert hooks == set(re.findall(r"^\| `(memwrite_\w+)`", text, re.MULTILINE))
    assert {page.name for page in HOOKS} - {"tutorial.md"} == set(
        re.findall(r"\]\((\w+\.md)\) \|$", text, re.MULTILINE)
    )


def test_the_table_of_laws_is_todays() -> None:
    """`memwrite laws --markdown` prints the rows of docs/laws.md."""
    rows = re.findall(
        r"^\| `(.*)` \| (.*) \|$", (ROOT / "docs" / "laws.md").read_text(), re.MULTILINE
    )
    assert rows == [(law.name, law.statement) for law in LAWS.values()]


def test_what_the_page_on_literature_names_is_there() -> None:
    """Writers, readers and configs of its first table, and every writer that it calls the nearest."""
    page = (ROOT / "docs" / "literature.md").read_text()
    built, *others = page.split("\n## ")[1:]
    plugins = registry()
    writers, readers = set(plugins.writers.entries), set(plugins.readers.entries)
    rows = [line.strip("| ").split(" | ") for line in built.splitlines() if line.startswith("| ")]
    for _, writer, reader, *config in rows[1:]:
        assert set(re.findall("`([^`]+)`", writer)) - {"long"} <= writers
        assert set(re.findall("`([^`]+)`", reader)) <= readers
        for words in re.findall("`([^`]+)`", " ".join(config)):
            path, *overrides = words.split()
            assert (ROOT / path).is_file()
            assert {o.removeprefix("writer.name=") for o in overrides} <= writers
    for line in "\n".join(others).splitlines():
        nearest = line.rpartition(" | ")[2]
        assert set(re.findall("`([\\w-]+)`", nearest)) - {"used"} <= writers


def test_links_of_the_readme_lead_somewhere() -> None:
    """mkdocs looks at the links of docs/ alone."""
    for name in ("README.md", "models/README.md"):
        page = ROOT / name
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (name, link)


def test_models_that_are_named_exist() -> None:
    """Configs, benchmarks and code name models that are in the repository."""
    texts = [ROOT / "README.md", *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("benchmarks/*.py")]
    texts += ROOT.glob("memwrite/**/*.py")
    for path in texts:
        for name in re.findall(r"models/([a-z][\w-]*)", path.read_text()):
            assert (ROOT / "models" / name).exists(), (path, name)


def test_models_are_small() -> None:
    sizes = {p: p.stat().st_size for p in (ROOT / "models").rglob("*") if p.is_file()}
    adapters = [size for path, size in sizes.items() if path.parent.name == "adapter"]
    assert max(adapters) < 8e6
    assert sum(adapters) < 32e6
    assert sum(sizes.values()) - sum(adapters) < 20e6


def test_models_name_no_folder_of_their_makers() -> None:
    """Configs, evaluations and adapters that ship hold no absolute path."""
    for path in (ROOT / "models").rglob("*"):
        if (
            path.suffix in {".yaml", ".json", ".jsonl", ".md", ".txt"}
            and "tokenizer" not in path.name
        ):
            found = re.search(r"""(?:^|[\s"'=])(/(?:\w[\w.-]*/)+\w*)""", path.read_text())
            assert found is None, (path, found)
