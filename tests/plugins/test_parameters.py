"""What a plugin's parameters are: read from its dataclass, so that a person need not open the source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

import pytest
from click.testing import CliRunner

from memwrite.cli.main import main
from memwrite.plugins import registry
from memwrite.plugins.parameters import Parameter, description, parameters


@dataclass(frozen=True)
class Shared:
    """Unused.

    Attributes:
        slots: as many slots
            as this: never fewer.
        rate: replaced below.
    """

    slots: int
    rate: float = 0.5


@dataclass(frozen=True)
class Own(Shared):
    """Configures what is
    `Own`.

    And more.

    Attributes:
        rate: share, from 0 to 1.
        inner: what is inside.

    Raises:
        ValueError: rate: is out of range.
    """

    inner: Shared = field(default_factory=lambda: Shared(3))
    names: list[str] = field(default_factory=list)
    none: int | None = None


def test_parameters_are_those_of_the_dataclass_and_what_is_said_of_them() -> None:
    assert parameters(Own) == [
        Parameter("slots", "int", None, "as many slots as this: never fewer."),
        Parameter("rate", "float", "0.5", "share, from 0 to 1."),
        Parameter("inner", "Shared", "{slots: 3, rate: 0.5}", "what is inside."),
        Parameter("names", "list[str]", "[]", ""),
        Parameter("none", "int | None", "null", ""),
    ]
    assert description(Own) == "Configures what is\n`Own`.\n\nAnd more."


CONFIGS = {
    f"{table.role} {plugin.name}": plugin.config
    for table in registry().tables
    for plugin in table.all()
    if hasattr(plugin, "config")
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_every_plugin_is_explained(name: str) -> None:
    assert description(CONFIGS[name])
    found = parameters(CONFIGS[name])
    assert [parameter.name for parameter in found] == [f.name for f in fields(CONFIGS[name])]
    assert [parameter.name for parameter in found if not parameter.meaning] == []


def test_a_name_is_described() -> None:
    result = CliRunner().invoke(main, ["plugins", "qa"])
    assert result.exit_code == 0
    assert result.output.startswith("task qa: questions on your own texts, JSONL  (memwrite ")
    assert '{"context": "...", "question": "...", "answers": ["...", ...]}' in result.output
    assert "task.params.files: list[str] = required\n" in result.output
    assert "task.params.held_out: float = 0.1\n    share of each file, its end," in result.output


def test_a_name_of_two_roles_is_described_twice() -> None:
    result = CliRunner().invoke(main, ["plugins", "no-memory", "--json"])
    writer, reader = json.loads(result.stdout)
    assert (writer["role"], reader["role"]) == ("writer", "reader")
    assert "no-memory" in writer["fits"]
    assert reader["fits"] == ["no-memory"]


def test_a_name_that_nothing_has() -> None:
    result = CliRunner().invoke(main, ["plugins", "no-memori"])
    assert result.exit_code == 2
    assert "did you mean 'no-memory'?" in result.output
