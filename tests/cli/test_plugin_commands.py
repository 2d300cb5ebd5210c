"""Commands that other packages bring, and those among them that cannot be loaded."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner, Result

from memwrite.cli import main as cli
from memwrite.utils import entry_points as installed


@click.command()
@click.argument("word")
def greet(word: str) -> None:
    """Say hello."""
    click.echo(f"hello {word}")


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands that were installed beside memwrite, one of them broken."""
    points = [
        EntryPoint("greet", f"{__name__}:greet", "memwrite.commands"),
        EntryPoint("wreck", "no_such_module:wreck", "memwrite.commands"),
        EntryPoint("write", "no_such_module:write", "memwrite.commands"),
    ]
    monkeypatch.setattr(EntryPoint, "load", lambda point: greet if point.name == "greet" else _no())
    monkeypatch.setattr(installed, "entry_points", lambda group: points)


def _no() -> None:
    raise ImportError("no module\nof that name")


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, list(words))


@pytest.mark.usefixtures("brought")
def test_a_command_of_another_package_is_one_of_ours() -> None:
    assert "greet" in run("--help").output
    assert run("greet", "you").output == "hello you\n"


@pytest.mark.usefixtures("brought")
def test_a_broken_one_is_told_of_when_it_is_called() -> None:
    listed = run("--help")
    assert listed.exit_code == 0
    assert "(broken)" in listed.output
    called = run("wreck", "--anything", "at all")
    assert called.exit_code == 1
    assert called.stderr == (
        "Error: the command 'wreck' could not be loaded: ImportError: no module of that name\n"
    )


@pytest.mark.usefixtures("brought")
def test_our_own_commands_come_first() -> None:
    assert "--context" in run("write", "--help").output


def test_without_plugins_nobody_brings_any(brought: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWRITE_NO_PLUGINS", "1")
    assert "No such command 'greet'" in run("greet").stderr
