"""A cluster of Ray, of two workers on this machine: what one process writes, whoever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from click.testing import CliRunner
from test_ingest import CONFIG, MEMORY, TEXTS, lines, states, written

from memwrite.cli.main import main
from memwrite.errors import ConfigError, InputError
from memwrite.stores import Store, ray_engine
from memwrite.stores.documents import Document
from memwrite.stores.ray_engine import Job, RayWorkers, Worker, shared
from memwrite.stores.store import provenance_of

#: How often Ray may try to start: it gives its processes 15 seconds, which is no option of its.
TRIES = 3
ENVIRONMENT = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.fixture
def cluster() -> Iterator[None]:
    """The one session of these tests: it takes seconds to start, and on a machine that is too busy does not start at all."""
    folder = tempfile.mkdtemp(prefix="ray")  # the names of sockets in it must be short
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for _ in range(TRIES):
            with suppress(Exception):  # Ray raises no class of its own here
                ray.init(num_cpus=2, object_store_memory=80 << 20, _temp_dir=folder, **options)
                break
            ray.shutdown()
        if not ray.is_initialized():
            pytest.skip(f"Ray could not start its own processes in {TRIES} tries")
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_bytes_of_one_process_though_a_worker_is_killed(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store that an earlier run has begun; and nothing is written twice."""
    path, config, place = (tmp_path / name for name in ("docs.jsonl", "config.yaml", "s.db"))
    lines(path, TEXTS)
    config.write_text(yaml.safe_dump(CONFIG))
    put, start = Store.put_rows, RayWorkers._start
    puts: list[list[str]] = []
    pids: list[int] = []

    def put_once(self: Store, keys: Any, *arguments: Any, **options: Any) -> None:
        if puts:
            raise KeyboardInterrupt
        puts.append([*keys])
        put(self, keys, *arguments, **options)

    def put_and_kill(self: Store, keys: Any, *arguments: Any, **options: Any) -> None:
        if len(puts) == 1:
            os.kill(pids[0], signal.SIGKILL)
        puts.append([*keys])
        put(self, keys, *arguments, **options)

    def started(self: RayWorkers, writer: Any) -> None:
        start(self, writer)
        pids.extend(ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in self.actors]))

    monkeypatch.setattr(Store, "put_rows", put_once)
    with pytest.raises(KeyboardInterrupt):
        written(path, place, batch_size=6)
    monkeypatch.setattr(Store, "put_rows", put_and_kill)
    monkeypatch.setattr(RayWorkers, "_start", started)
    words = ["write", str(config), "--input", str(path), "--out", str(place), "--batch-size", "6"]
    done = CliRunner().invoke(main, [*words, "--engine", "ray", "--json"])
    assert done.exit_code == 0, done.output
    # Ray may tell of the kill on standard output at any time.
    report = next(json.loads(line) for line in done.stdout.splitlines() if line[0] == "{")
    assert (report["written"], report["already"]) == (34, 6)
    assert sorted(key for keys in puts for key in keys) == sorted(TEXTS)
    assert len({*pids} - {os.getpid()}) == 2
    monkeypatch.undo()
    written(path, tmp_path / "whole.db", batch_size=6)
    found, whole = states(place), states(tmp_path / "whole.db")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def job(store: str | None) -> Job:
    digest = provenance_of(MEMORY, MEMORY.writer.init(1)).digest
    return Job(CONFIG, (), MEMORY.chat, digest, os.getcwd(), store, {"keep": 0})


def test_a_store_that_all_reach_is_written_by_the_workers(tmp_path: Path) -> None:
    """And what one has put, it does not write again when it is started anew."""
    place = f"file://{tmp_path}/store"
    Store(place).close()
    batch = [Document("a.jsonl", 1, "a", "so it goes"), Document("a.jsonl", 2, "b", "and so on")]
    tally, back = Worker(job(place)).write(batch, set())
    assert (tally.written, tally.already, back) == (2, 0, [])
    again, _ = Worker(job(place)).write(batch, set())
    assert (again.written, again.already) == (0, 2)
    sent, ((keys, state),) = Worker(job(None)).write(batch, {"a"})
    assert (sent.written, sent.already, keys) == (1, 1, ["b"])
    with Store(place) as store:
        assert torch.equal(state["memory"], store.get("b", MEMORY)["memory"])


@pytest.mark.parametrize(
    ("place", "reached"),
    [
        ("memories.db", False), ("/a/b.db", False), ("file:///a", False), ("memory://a", False),
        ("s3://bucket/memories", True), ("postgresql://me@host/database", True),
    ],
)  # fmt: skip
def test_what_all_machines_reach(place: str, reached: bool) -> None:
    assert shared(place) is reached


def test_a_worker_with_another_model_is_refused() -> None:
    other = replace(job(None), overrides=["writer.params.lr=0.25"])
    with pytest.raises(ConfigError, match="has another model or writer than the one that began"):
        Worker(other).write([Document("a.jsonl", 1, "a", "so it goes")], set())


def test_what_workers_fail_of_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [Document("a.jsonl", 7, "a", "so it goes")]
    for error, kind, message in (
        (ray.exceptions.RayTaskError("write", "trace", InputError("no good")), InputError, "^no good$"),
        (ray.exceptions.ActorDiedError(), ConfigError, "'a.jsonl', line 7 .* were killed 4 times"),
    ):  # fmt: skip

        def failing(ref: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ray, "get", failing)
        with pytest.raises(kind, match=message):
            ray_engine._result(None, batch)


def test_ray_is_asked_for_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing, or torchrun is there already, before a store is made."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    place, path = tmp_path / "s.db", lines(tmp_path / "docs.jsonl", TEXTS)
    words = ["write", str(config), "--input", str(path), "--out", str(place), "--engine", "ray"]
    monkeypatch.delitem(sys.modules, "memwrite.stores.ray_engine")
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "pip install 'memwrite[ray]'" in done.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "leave torchrun out" in done.stderr
    assert not place.exists()
    for options, message in (
        (["--engine", "ray", "--context", str(path)], "--engine ray goes with --input"),
        (["--workers", "2", "--input", str(path)], "--workers goes with --engine ray"),
    ):
        done = CliRunner().invoke(main, ["write", str(config), *options, "--out", str(place)])
        assert (done.exit_code, message in done.stderr) == (2, True)
