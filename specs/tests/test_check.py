"""`memwrite check`, `memwrite laws` and `memwrite mutants`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from memwrite_specs.cli.report import table
from memwrite_specs.laws import LAWS
from memwrite_specs.mutants import MUTANTS
from memwrite_specs.runner import Result as Held

from memwrite.cli.main import main
from memwrite.plugins import registry

ROOT = Path(__file__).parents[2]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_a_writer_is_held_to_one_law() -> None:
    done = run("check", "gradient", "--reader", "prefix", "--law", "capacity", "--law", "streaming")
    assert done.exit_code == 0
    assert "held     capacity" in done.output
    assert "n/a      streaming: capability 'streaming' is not declared" in done.output
    assert "2 laws: 1 held, 1 n/a, 0 gap, 0 not run, 0 broken" in done.output


def test_a_reader_gets_a_trivial_writer() -> None:
    done = run("check", "lora", "--law", "contract", "reader.params.alpha=4")
    assert done.output.startswith("reference-matrix + lora on tiny")
    assert done.exit_code == 0


def test_results_as_json() -> None:
    done = run("check", "forward", "--law", "contract", "--json", "--seeds", "2")
    (result,) = json.loads(done.stdout)
    assert result["pair"] == "forward + prefix on tiny"
    assert (result["law"], result["outcome"]) == ("contract", "held")


def test_all_pairs_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three writers: all that are installed take half a minute."""
    found = [pair for pair in registry().pairs() if pair[0].name in ("gradient", "ridge", "delta")]
    monkeypatch.setattr(type(registry()), "pairs", lambda _: found)
    done = run("check", "--all", "--law", "mergeable", "--markdown")
    assert done.exit_code == 0
    head, _, *rows = done.stdout.splitlines()
    assert head == "| pair | laws held | not held | laws that do not bind |"
    assert "| gradient + prefix on tiny | 0 of 0 | none | `mergeable` |" in rows
    assert "| ridge + lora on tiny | 1 of 1 | none | none |" in rows


def test_a_table_says_what_is_not_held_and_why_a_gap_is_one() -> None:
    results = [
        Held("a + b", "contract", "held"),
        Held("a + b", "sessions", "gap", "it has none"),
        Held("a + b", "losses", "broken", "too much"),
        Held("c + b", "contract", "not run", "too long"),
    ]
    assert table(results).splitlines()[2:] == [
        "| a + b | 1 of 3 | `sessions` (gap), `losses` (broken) | none |",
        "| c + b | 0 of 1 | `contract` (not run) | none |",
        "",
        "- gap `sessions` of a + b: it has none",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["gradiant"],
            "no installed writer or reader is called 'gradiant' (did you mean 'gradient'?",
        ),
        (
            ["gradient", "--law", "capasity"],
            "no law is called 'capasity' (did you mean 'capacity'?",
        ),
        (["gradient", "--backbone", "lama"], "no backbone 'lama'"),
        (["gradient", "--reader", "lora"], "but writer 'gradient' emits 'prefix' states"),
        (["gradient", "writer.params.slots=0"], "slots must be at least 1"),
        (["gradient", "slots=2"], "no key 'slots'"),
        (["gradient", "writer.slots=2"], "an override of the writer is writer.params.KEY=VALUE"),
        ([], "give either the NAME of a writer or reader, or --all"),
        (["gradient", "--all"], "give either the NAME of a writer or reader, or --all"),
        (["prefix", "--reader", "prefix"], "--reader goes with a writer"),
    ],
)
def test_bad_input_ends_with_one_sentence(words: list[str], sentence: str) -> None:
    done = run("check", *words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_broken_law_is_shown_and_ends_with_exit_code_1() -> None:
    mutant = MUTANTS["keeps-an-attribute"]
    with mutant.pair.installed():
        done = run("check", mutant.name, "--reader", "prefix", "--law", "purity")
    assert done.exit_code == 1
    assert "broken   purity" in done.stdout
    assert "keeps-an-attribute + prefix on tiny breaks the law 'purity'" in done.stderr
    assert "changed KeepsAnAttribute.['stash']" in done.stderr
    repeat = "memwrite check keeps-an-attribute --reader prefix --law purity --seed 0"
    assert f"repeat: {repeat}" in done.stderr


@pytest.mark.parametrize("laws", [[], ["--law", "purity", "--law", "finite"]])
def test_a_broken_contract_is_shown_once_and_the_other_laws_are_not_run(laws: list[str]) -> None:
    mutant = MUTANTS["keeps-a-note-on-the-state"]
    with mutant.pair.installed():
        done = run("check", mutant.name, "--reader", "prefix", *laws)
    assert done.exit_code == 1
    others = 2 if laws else len(LAWS) - 1
    assert f"not run  {others} other laws: the law 'contract' is broken" in done.stdout
    assert f"{others} not run" in done.stdout
    assert done.stderr.count("breaks the law 'contract'") == 1
    assert len(done.stdout.splitlines()) < 5


def test_the_laws_are_listed_with_what_they_say() -> None:
    assert json.loads(run("laws", "--json").stdout) == {n: law.statement for n, law in LAWS.items()}
    assert run("laws").stdout.startswith("contract\n    A state is what the plugin declares")


def test_the_documents_list_every_law_as_it_stands() -> None:
    table = run("laws", "--markdown").stdout.strip()
    assert table in (ROOT / "docs" / "laws.md").read_text()


def test_mutants_as_a_matrix() -> None:
    names = ["grows", "keeps-a-file"]
    done = run("mutants", *names, "--own")
    assert done.exit_code == 0
    assert "killed  grows by capacity" in done.output
    assert "2 of 2 mutants killed by their laws" in done.output
    table = run("mutants", "keeps-a-file", "--own", "--markdown").stdout
    assert table.splitlines()[2].count("**✗**") == 1
    assert "no mutant is called 'grow' (did you mean 'grows'?" in run("mutants", "grow").stderr
