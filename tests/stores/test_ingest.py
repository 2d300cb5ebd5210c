"""`memwrite write --input`: every document once, whatever the batch, the processes and the interruptions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from accelerate import PartialState
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MODELS, SOAK
from torch import Tensor

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.errors import ConfigError, DivergenceError, InputError
from memwrite.stores import Store
from memwrite.stores import ingest as writing
from memwrite.stores.documents import Document, Documents
from memwrite.stores.ingest import MAX_BATCH_BYTES, plan, write_documents

FORK = multiprocessing.get_context("fork")
CONFIG = {
    "backbone": MODELS["gpt2"],
    "writer": {"name": "gradient", "params": {"slots": 2, "steps": 2, "lr": 0.5}},
    "reader": {"name": "prefix"},
}
MEMORY = Memory.from_config(CONFIG)
TEXTS = {f"doc-{i}": f"{i}: " + "so it goes. " * (i % 9) for i in range(40)}


def lines(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in texts.items()))
    return path


def states(place: Path) -> dict[str, Tensor]:
    with Store(place, make=False) as store:
        return {entry.key: store.get(entry.key, MEMORY)["memory"] for entry in store.list()}


def written(path: Path, place: Path, **options: Any) -> writing.Tally:
    with Store(place) as store:
        return write_documents(MEMORY, Documents.of(path), store, **options)


def test_the_batch_makes_no_difference(tmp_path: Path) -> None:
    """Each document as if it were written alone, long ones in chunks as ever."""
    path = lines(tmp_path / "docs.jsonl", {**TEXTS, "long": "word " * 60})
    for batch_size in (1, 7, 64):
        tally = written(path, tmp_path / f"{batch_size}.db", batch_size=batch_size)
        assert (tally.written, tally.already, tally.skipped) == (41, 0, [])
    alone = states(tmp_path / "1.db")
    for batch_size in (7, 64):
        found = states(tmp_path / f"{batch_size}.db")
        assert found.keys() == alone.keys()
        for key, state in found.items():
            torch.testing.assert_close(state, alone[key], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone["doc-3"], MEMORY.write(TEXTS["doc-3"]).state["memory"])


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    """But for texts that have changed, and writers that have."""
    place, path = tmp_path / "s.db", lines(tmp_path / "docs.jsonl", TEXTS)
    assert written(path, place).written == 40
    before = states(place)
    tally = written(lines(path, {**TEXTS, "doc-5": "another"}), place)
    assert (tally.written, tally.already) == (1, 39)
    after = states(place)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == ["doc-5"]
    other = Memory.from_config(CONFIG)
    with torch.no_grad():
        next(other.writer.parameters()).add_(1)
    with Store(place) as store:
        assert write_documents(other, Documents.of(path), store).written == 40


@pytest.mark.parametrize("batches", [1, 4])
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """By SIGINT, which is told in a word."""
    path, config = lines(tmp_path / "docs.jsonl", TEXTS), tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    words = ["write", str(config), "--input", str(path), "--batch-size", "6", "--out"]
    put, left = Store.put_rows, batches

    def put_some(self: Store, *arguments: Any, **options: Any) -> None:
        nonlocal left
        if not left:
            signal.raise_signal(signal.SIGINT)
        left -= 1
        put(self, *arguments, **options)

    monkeypatch.setattr(Store, "put_rows", put_some)
    # Where tests run in the background the shell has had the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    cut = CliRunner().invoke(main, [*words, str(tmp_path / "cut.db")])
    signal.signal(signal.SIGINT, before)
    assert (cut.exit_code, cut.stdout) == (130, "")
    assert cut.stderr.endswith("Interrupted.\n")
    monkeypatch.undo()
    again = CliRunner().invoke(main, [*words, str(tmp_path / "cut.db"), "--json"])
    report = json.loads(again.stdout)
    assert (report["written"], report["already"]) == (40 - 6 * batches, 6 * batches)
    written(path, tmp_path / "whole.db", batch_size=6)
    found, whole = states(tmp_path / "cut.db"), states(tmp_path / "whole.db")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


BAD = [
    (b'{"id": 3', "not JSON"),
    (b'{"id": "\xff", "text": "x"}', "not UTF-8 text"),
    (b"[1, 2]", "not an object"),
    (b'{"id": "a"}', "'text' is missing"),
    (b'{"id": "a", "text": 7}', "'text' is missing or not a string"),
    (b'{"id": "a", "text": "  "}', "'text' is empty"),
    (b'{"id": "", "text": "x"}', "a key has 1 to 200 bytes"),
    (b'{"id": true, "text": "x"}', "'id' is neither"),
    (b'{"id": "first", "text": "again"}', "'first' is the id of line 1 too"),
    (b'{"id": "s", "text": "\\ud800"}', "surrogates not allowed"),
    (b"[" * 100_000, "recursion"),
]


def test_bad_lines_are_told_and_skipped(tmp_path: Path) -> None:
    path, place, config = (tmp_path / name for name in ("docs.jsonl", "s.db", "config.yaml"))
    config.write_text(yaml.safe_dump(CONFIG))
    good = [b'{"id": "first", "text": "one"}', b"", *(line for line, _ in BAD), b'{"text": "last"}']
    path.write_bytes(b"\n".join(good))
    words = ["write", str(config), "--input", str(path), "--out", str(place)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3, done.output
    assert "2 written" in done.stdout
    assert f"{len(BAD)} lines skipped" in done.stdout
    told = done.stderr.splitlines()
    assert len(told) == len(BAD)
    for number, (line, (_, reason)) in enumerate(zip(told, BAD, strict=True), 3):
        assert line.startswith(f"{path}, line {number}: skipped: ")
        assert reason in line
    assert [*states(place)] == ["14", "first"]
    report = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (report["written"], report["already"], len(report["skipped"])) == (0, 2, len(BAD))


def test_a_document_that_diverges_is_skipped_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is one that the tokenizer cannot read."""
    write, encode = Memory.write, Memory.encode

    def diverging(self: Memory, context: Any, state: Any = None) -> Any:
        rows = [row for row, text in enumerate(context) if text.startswith("bad")]
        if rows:
            raise DivergenceError("not finite", rows)
        return write(self, context, state)

    def reading(self: Memory, texts: str | Sequence[str], **options: Any) -> Any:
        if any(text.startswith("odd") for text in ([texts] if isinstance(texts, str) else texts)):
            raise InputError("cannot be read")
        return encode(self, texts, **options)

    monkeypatch.setattr(Memory, "write", diverging)
    monkeypatch.setattr(Memory, "encode", reading)
    texts = {"a": "one", "b": "bad", "c": "two", "d": "odd", "e": "bad too"}
    tally = written(lines(tmp_path / "docs.jsonl", texts), tmp_path / "s.db")
    assert tally.written == 2
    reasons = {line.line: line.reason for line in tally.skipped}
    assert reasons == {2: "not finite", 4: "cannot be read", 5: "not finite"}
    assert [*states(tmp_path / "s.db")] == ["a", "c"]


def test_what_cannot_begin_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(InputError, match="holds no document"):
        written(empty, tmp_path / "s.db")
    with pytest.raises(InputError, match="cannot be read"):
        written(tmp_path / "none.jsonl", tmp_path / "s.db")
    full = Memory.from_config(
        {
            "backbone": MODELS["gpt2"],
            "writer": {"name": "full-context"},
            "reader": {"name": "key-value"},
        }
    )
    path = lines(tmp_path / "docs.jsonl", TEXTS)
    with Store(tmp_path / "s.db") as store, pytest.raises(ConfigError, match="grow with"):
        write_documents(full, Documents.of(path), store)
    for words in ([], ["--input", str(path), "--context", str(path)]):
        done = CliRunner().invoke(main, ["write", "x.yaml", *words, "--out", str(tmp_path / "s")])
        assert done.exit_code == 2
        assert "either --context" in done.stderr


def _feed(fifo: Path, data: bytes) -> None:
    with fifo.open("wb") as pipe:
        pipe.write(data)


def test_a_stream_is_read_once_and_whole(tmp_path: Path) -> None:
    """As with `--input <(zcat docs.jsonl.gz)`: counting its lines first would eat them."""
    path, fifo, config = (tmp_path / name for name in ("docs.jsonl", "fifo", "config.yaml"))
    data = lines(path, TEXTS).read_bytes()
    config.write_text(yaml.safe_dump(CONFIG))
    os.mkfifo(fifo)
    feeder = Thread(target=_feed, args=(fifo, data))
    feeder.start()
    words = ["write", str(config), "--input", str(fifo), "--out", str(tmp_path / "s.db")]
    done = CliRunner().invoke(main, [*words, "--json"])
    feeder.join()
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == len(TEXTS)
    written(path, tmp_path / "whole.db")
    assert states(tmp_path / "s.db").keys() == states(tmp_path / "whole.db").keys()


def test_processes_do_not_share_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(InputError, match="is a stream, which 2 processes cannot share"):
        written(tmp_path / "fifo", tmp_path / "s.db")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--days", "1e10"], "--days 1e+10 is not a number of days"),
        (["--days", "inf"], "--days inf is not a number of days"),
        (["--days", "nan"], "--days nan is not a number of days"),
        (["--days", "9e6"], "beyond the year 9999"),
        (["--input", "none.jsonl"], "'none.jsonl' cannot be read"),
        (["--input", "."], "'.' cannot be read: it is a folder"),
    ],
)
def test_bad_values_are_refused_before_a_store_is_made(
    tmp_path: Path, option: list[str], message: str
) -> None:
    path, config, place = (tmp_path / name for name in ("docs.jsonl", "config.yaml", "s.db"))
    lines(path, TEXTS)
    config.write_text(yaml.safe_dump(CONFIG))
    source = [] if "--input" in option else ["--input", str(path)]
    words = ["write", str(config), *source, "--out", str(place)]
    done = CliRunner().invoke(main, [*words, *option])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not place.exists()


def test_the_documents_are_not_the_store(tmp_path: Path) -> None:
    path, config = lines(tmp_path / "docs.jsonl", TEXTS), tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    before = path.read_bytes()
    words = ["write", str(config), "--input", str(path), "--out", str(path)]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "name another file with --out" in done.stderr
    assert path.read_bytes() == before


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=200),
    st.integers(1, 70),
)
@settings(max_examples=60)
def test_every_document_is_in_one_batch(sizes: list[int], batch_size: int) -> None:
    """Of at most so many and, padded, at most so long, unless it is alone."""
    documents = [
        Document("docs.jsonl", line, str(line), "x" * size) for line, size in enumerate(sizes)
    ]
    batches = [*plan(documents, batch_size)]
    assert sorted(d.line for batch in batches for d in batch) == [*range(len(sizes))]
    for batch in batches:
        longest = max(len(d.text) for d in batch)
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * longest <= MAX_BATCH_BYTES
    assert batches == [*plan(documents[::-1], batch_size)]


def _processes(words: list[str], out: Path) -> list[Any]:
    """Two, as torchrun starts them, but forks of this one, which has torch loaded already; the first one prints to `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        FORK.Process(
            target=_process, args=(words, {**place, "RANK": rank, "LOCAL_RANK": rank}, out)
        )
        for rank in ("0", "1")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        for process in started:
            process.start()
    return started


def _process(words: list[str], env: dict[str, str], out: Path) -> None:
    os.environ.update(env)
    PartialState._reset_state()
    with out.with_suffix("." + env["RANK"]).open("w") as file, redirect_stdout(file):
        main(words)


def _count(place: Path) -> int:
    return Store(place).size().memories if place.exists() else 0


def test_two_processes_and_a_kill_end_with_the_same_bytes(tmp_path: Path) -> None:
    """Two are killed in the midst of it, in a soak twenty times over; two go on; and the result is that of one alone."""
    texts = {
        f"{key}-{turn}": f"{turn} {text}"
        for turn in range(round(20 * min(SOAK, 10)))
        for key, text in TEXTS.items()
    }
    path, config = lines(tmp_path / "docs.jsonl", texts), tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    place = tmp_path / "shared.db"
    words = ["write", str(config), "--input", str(path), "--batch-size", "16"]
    words += ["--json", "--out", str(place)]
    before = 0
    for _ in range(1 if SOAK == 1 else 20):
        killed = _processes(words, tmp_path / "killed")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and _count(place) <= before:
            time.sleep(0.02)
        for process in killed:
            process.kill()
            process.join()
        assert before < len(states(place)) < len(texts)
        before = len(states(place))
    for process in (both := _processes(words, tmp_path / "both")):
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    report = json.loads((tmp_path / "both.0").read_text())
    assert (report["written"], report["already"]) == (len(texts) - before, before)
    written(path, tmp_path / "alone.db", batch_size=16)
    shared, alone = states(place), states(tmp_path / "alone.db")
    assert shared.keys() == alone.keys()
    assert all(torch.equal(shared[key], alone[key]) for key in alone)
