"""`memwrite ask` and `write` on a model that chats: one prompt or many, and notes on what an answer is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from templates import memory_of

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.session import Session

DOCUMENT = "The boat (red) is old."
FEW = ("--max-new-tokens", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, a document, and the document's state."""
    folder: Path = tmp_path_factory.mktemp("ask")
    memory_of("chatml").backbone.save(folder / "model", torch.float64)
    (folder / "doc.txt").write_text(DOCUMENT)
    assert written(folder, "full-context", "key-value").exit_code == 0
    return folder


def written(folder: Path, writer: str, reader: str, *words: object, **params: Any) -> Result:
    config = {
        "backbone": {"path": str(folder / "model"), "dtype": "float64"},
        "writer": {"name": writer, "params": params},
        "reader": {"name": reader},
    }
    path = folder / f"{writer}.yaml"
    path.write_text(yaml.safe_dump(config))
    return run("write", path, "--context", folder / "doc.txt", "--out", folder / f"{writer}.st", *words)  # fmt: skip


def run(*words: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=text)


def test_prompts_come_from_standard_input(folder: Path) -> None:
    """One a line, each answered as alone, by one model."""
    questions = ["which boat?", "so (why)?"]
    alone = [run("ask", folder / "full-context.st", q, *FEW).stdout for q in questions]
    both = run("ask", folder / "full-context.st", "-", *FEW, text="\n".join([questions[0], "", questions[1]]))  # fmt: skip
    assert both.stdout == "".join(alone)
    memory, state = Memory.load(folder / "full-context.st")
    assert alone[0] == memory.ask(state, questions[0], max_new_tokens=3) + "\n"
    printed = run("ask", folder / "full-context.st", "-", "--json", *FEW, text="\n".join(questions))
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == questions
    assert [row["answer"] + "\n" for row in rows] == alone


def test_raw_text_is_written_and_continued(folder: Path) -> None:
    """A state that was written raw is asked raw, without saying so again."""
    memory, state = Memory.load(folder / "full-context.st")
    raw = run("ask", folder / "full-context.st", "boat", "--raw", *FEW)
    assert raw.stdout == memory.ask(state, "boat", raw=True, max_new_tokens=3) + "\n"
    path = folder / "raw"
    path.mkdir()
    (path / "doc.txt").write_text(DOCUMENT)
    (path / "model").symlink_to(folder / "model")
    assert written(path, "full-context", "key-value", "--raw").exit_code == 0
    memory, state = Memory.load(path / "full-context.st")
    assert not memory.chat
    assert int(state["mask"].sum()) == len(DOCUMENT) + 2
    assert memory.prompt(state, "boat").ids.shape == (1, len("boat"))
    whole = memory.prompt(state, "boat", raw=False)
    assert int(whole.lengths) > len("boat") + 20


@pytest.mark.parametrize(
    ("writer", "reader", "worth"),
    [
        ("forward", "prefix", "its states mean nothing to this model"),
        ("gradient", "prefix", "its states can be recited, not questioned"),
    ],
)
def test_untrained_writers_say_so(folder: Path, writer: str, reader: str, worth: str) -> None:
    """When they write and when their states are asked, but not once they have been trained."""
    note = f"Note: writer '{writer}' has not been trained: {worth}."
    assert note in written(folder, writer, reader, slots=2).stderr.splitlines()
    assert note in run("ask", folder / f"{writer}.st", "who?", *FEW).stderr.splitlines()
    memory = Memory.from_config(folder / f"{writer}.yaml")
    assert memory.caveat in note
    memory.save_run(folder / f"{writer}-run")
    trained = Memory.from_config(folder / f"{writer}-run")
    assert trained.caveat == ""
    assert trained.state_file(trained.writer.init(1)).header.trained


@pytest.mark.parametrize(
    ("objective", "said"), [("distillation", ""), ("reconstruction", "recited")]
)
def test_what_a_descent_is_for_says_what_its_states_are_worth(
    folder: Path, objective: str, said: str
) -> None:
    memory = Memory.from_config(
        {
            "backbone": {"path": str(folder / "model"), "dtype": "float64"},
            "writer": {"name": "soft-prompt", "params": {"objective": objective}},
            "reader": {"name": "prefix"},
        }
    )
    assert said in memory.caveat
    assert bool(memory.caveat) == bool(said)


def test_writers_without_weights_have_nothing_to_be_trained(folder: Path) -> None:
    assert written(folder, "full-context", "key-value").stderr == ""
    assert "trained" not in run("ask", folder / "full-context.st", "who?", *FEW).stderr


def test_a_writer_that_keeps_nothing_is_refused(folder: Path) -> None:
    result = written(folder, "no-memory", "no-memory")
    assert result.exit_code == 2
    assert "writer 'no-memory' keeps nothing of a text" in result.stderr
    (folder / "docs.jsonl").write_text(json.dumps({"text": DOCUMENT}))
    store = folder / "store.db"
    result = run("write", folder / "no-memory.yaml", "--input", folder / "docs.jsonl", "--out", store)  # fmt: skip
    assert result.exit_code == 2
    assert not store.exists()


def test_an_empty_answer_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "ask", lambda *_, **__: " ")
    result = run("ask", folder / "full-context.st", "who?")
    assert "the model ended it at once" in result.stderr
    assert result.stdout == " \n"


def test_in_a_terminal_answers_come_piece_by_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = run("ask", folder / "full-context.st", "who?", "--max-new-tokens", 12).stdout
    pieces: list[str] = []
    echo = click.echo
    monkeypatch.setattr(
        click, "echo", lambda text="", **how: pieces.append(text) or echo(text, **how)
    )
    monkeypatch.setattr("memwrite.cli.ask._in_terminal", lambda: True)
    assert run("ask", folder / "full-context.st", "who?", "--max-new-tokens", 12).stdout == quiet
    assert len(pieces) > 2
    assert "".join(pieces) == quiet.rstrip("\n")


def test_a_stream_is_the_answer() -> None:
    memory = memory_of("chatml")
    state = memory.write(DOCUMENT).state
    pieces: list[str] = []
    answer = memory.ask(state, "who?", max_new_tokens=6, stream=pieces.append)
    assert answer == memory.ask(state, "who?", max_new_tokens=6) == "".join(pieces)
    assert len(pieces) > 1
    said: list[str] = []
    session = Session(memory, state)
    assert session.ask("who?", max_new_tokens=6, stream=said.append) == answer
    assert said == pieces
    with pytest.raises(Exception, match="one answer at a time"):
        memory.ask(state, ["a", "b"], stream=pieces.append)


def test_what_a_folder_recommends_is_in_force_where_it_is_asked_for(folder: Path) -> None:
    file = folder / "model" / "generation_config.json"
    data = json.loads(file.read_text())
    try:
        file.write_text(json.dumps({**data, "no_repeat_ngram_size": 1, "max_new_tokens": 1}))
        memory, state = Memory.load(folder / "full-context.st")
        options = {"max_new_tokens": 12}
        plain = memory.ask(state, "who?", **options)
        expected = memory.ask(state, "who?", no_repeat_ngram_size=1, **options)
        assert memory.ask(state, "who?", recommended=True, **options) == expected != plain
        assert (
            memory.ask(state, "who?", recommended=True, no_repeat_ngram_size=0, **options) == plain
        )
        words = ("ask", folder / "full-context.st", "who?", "--max-new-tokens", 12, "--recommended")
        assert run(*words).stdout == expected + "\n"
    finally:
        file.write_text(json.dumps(data))
