"""CONTRIBUTING.md keeps its word: what it prints is the template, and the walk goes as it says."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest
from memwrite_specs import LAWS, Pair, hold
from memwrite_specs.scaffold import make, rendered

from memwrite.plugins import Capabilities, WriterPlugin, registry
from memwrite.state import KINDS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def table(heading: str) -> dict[str, str]:
    """The table below a heading: name in its first column -> the rest of the row."""
    section = re.split(rf"^##+ {heading}$", TEXT, flags=re.MULTILINE)[1].split("\n#")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", section, re.MULTILINE))


def test_the_printed_modules_are_the_templates() -> None:
    """Writer, declaration and test are printed as `memwrite new my-writer` makes them; other Python can be read."""
    files = {path: text for path, text in rendered("my-writer").items() if path.endswith(".py")}
    printed = [path for path, text in files.items() if text in blocks("python")]
    assert printed == [
        "memwrite_my_writer/__init__.py",
        "memwrite_my_writer/writer.py",
        "tests/test_my_writer.py",
    ]
    for block in blocks("python"):
        ast.parse(block)


def test_the_changes_of_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first change breaks the three laws that are named, with the report that is printed; the second leaves two."""
    changes = blocks("diff")
    three = {"chunk-exact", "order-free", "mergeable"}
    assert {name for name in LAWS if f"`{name}`" in TEXT.split("The first of them")[0]} == three

    def changed(name: str, changes: list[str]) -> WriterPlugin:
        folder, module = tmp_path / name, f"memwrite_{name}"
        make(name, folder)
        path = folder / module / "writer.py"
        text = path.read_text()
        for change in changes:
            lines = change.splitlines()
            old = "\n".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(old) == 1
            text = text.replace(old, "\n".join(line[1:] for line in lines if line[0] in " +"))
        path.write_text(text)
        monkeypatch.syspath_prepend(folder)
        plugin: WriterPlugin = importlib.import_module(module).WRITER
        return plugin

    def broken(plugin: WriterPlugin) -> dict[str, str]:
        pair = Pair(plugin, registry().reader("prefix"))
        results = [hold(pair, law) for law in LAWS.values()]
        return {result.law: result.why for result in results if result.outcome == "broken"}

    first = broken(changed("walked", changes[:1]))
    assert first.keys() == three
    told = first["chunk-exact"].replace("walked", "my-writer").splitlines()
    assert "\n".join(told[:3]) in TEXT
    assert broken(changed("strolled", changes)).keys() == {"order-free", "mergeable"}


def test_the_printed_summary_is_todays() -> None:
    """All laws but those of online writers and of deletion hold for the template."""
    assert f"memwrite laws: {len(LAWS) - 2} held, 2 n/a, 0 gap, 0 not run, 0 broken; 1 pair" in TEXT


def test_the_table_of_kinds_is_the_codes() -> None:
    """Every kind of the core is in the table, and whatever is there has the tensor names of `KINDS`."""
    rows = table("Kinds of state")
    registry()  # which knows the kinds of plugins
    assert {"empty", "prefix", "matrix", "keyvalue", "lowrank", "recurrent"} <= rows.keys()
    for name, row in rows.items():
        assert all(re.search(rf"\b{tensor}\b", row) for tensor in KINDS[name].required)


def test_the_table_of_capabilities_is_the_codes() -> None:
    """Every capability is in the table, with its law where that has another name."""
    rows = table("Capabilities")
    assert rows.keys() == {f.name for f in fields(Capabilities)}
    assert all(
        name.replace("_", "-") in LAWS or f"`{name}-is-offline`" in row
        for name, row in rows.items()
    )
