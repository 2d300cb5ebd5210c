"""Laws of what a context reaches: the state, and nothing else. They look on from other processes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from memwrite.checkpoints.open import config_of, load_reader
from memwrite.checkpoints.state_file import load_state
from memwrite.memory import Memory
from memwrite.state import Tokens
from memwrite_specs.case import Case
from memwrite_specs.forked import ForkedProcess, side_effects_recorded
from memwrite_specs.heap_diff import HeapSnapshot
from memwrite_specs.law import LawBroken, law
from memwrite_specs.pair import Pair

QUERIES = [[72, 105, 33], [33]]
#: Letters of a context, and how many contexts are written before and while the process is looked at.
LONG, TIMES = 80, 6


@law(examples=2, leakage=True, pairing=True)
def context_removal(case: Case) -> None:
    """READ needs the state file and nothing else: a process that has never seen the context reads the same from it."""
    pair = case.pair
    with ForkedProcess(lambda question: _read_elsewhere(pair, question)) as process:
        rows = len(QUERIES)
        state = case.write(case.context(rows=rows))
        here = case.read(state, Tokens.from_rows(QUERIES))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            case.memory.save(state, path)
            there = process.call(json.dumps([str(path), QUERIES]).encode())
    case.same("the logits that another process read from the file", there["logits"], here)


def _read_elsewhere(pair: Pair, question: bytes) -> dict[str, Tensor]:
    path, queries = json.loads(question)
    torch.manual_seed(12345)  # what is not in the file comes out differently
    file = load_state(path)
    backbone = pair.language_model()
    if backbone.fingerprint != file.header.fingerprint:
        raise LawBroken("the state file names another language model than it was written with")
    reader = load_reader(file, pair.reader, backbone, path)
    memory = Memory(backbone, None, reader, config_of(file.header, path)).eval()
    with torch.no_grad():
        return {"logits": memory.read(file.state, Tokens.from_rows(queries)).logits}


@law(examples=1, leakage=True)
def nothing_left_behind(case: Case) -> None:
    """When a context and its state are dropped, the process is as it was: no object more, wherever it is kept and in
    whatever form, and none that holds something else."""
    pair, seed = case.pair, case.seed
    with ForkedProcess(lambda _: _search(pair, seed)) as process:
        process.call()


def _search(pair: Pair, seed: int) -> dict[str, Tensor]:
    case = Case(pair, seed)
    for _ in range(TIMES):  # what is kept for a shape, or by a library for ever, is there by then
        _use(case)
    heap = HeapSnapshot()
    for _ in range(TIMES):
        _use(case)
    if found := heap.leaks():
        raise LawBroken(f"after {TIMES} contexts were dropped: {'; '.join(found[:3])}")
    return {}


def _use(case: Case) -> list[int]:
    ids = case.secret(LONG)
    tokens = case.tokens([ids])
    state = case.write(tokens)
    case.read(state, tokens)
    return ids


@law(examples=1, leakage=True)
def no_side_effects(case: Case) -> None:
    """WRITE and READ touch nothing outside their process: they write no file, change no environment variable, open no
    connection, start no process and print no context."""
    pair, seed = case.pair, case.seed
    with ForkedProcess(lambda _: _watch(pair, seed)) as process:
        process.call()


def _watch(pair: Pair, seed: int) -> dict[str, Tensor]:
    case = Case(pair, seed)
    for _ in range(TIMES):  # compilers may fill their caches, libraries load what they lack
        _use(case)
    found: list[str] = []
    secrets: list[str] = []
    with side_effects_recorded(found, secrets):
        for _ in range(TIMES):
            ids = _use(case)
            secrets += [bytes(ids).decode(), str(ids)[1:-1]]
    if found:
        raise LawBroken(f"a write or read {'; '.join(dict.fromkeys(found[:3]))}")
    return {}
