"""Laws of what a context reaches: the state, and nothing else. They look on from other processes."""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from memwrite.memory import Memory
from memwrite.runs import config_of, load_reader_of
from memwrite.state import Tokens
from memwrite.storage import load_state
from memwrite_specs.case import Case
from memwrite_specs.law import LawBroken, law
from memwrite_specs.pair import Pair
from memwrite_specs.remains import freeze, holders
from memwrite_specs.witness import Witness, watched

QUERIES = [[72, 105, 33], [33]]


@law(examples=4)
def context_removal(case: Case) -> None:
    """READ needs the state file and nothing else: a process that has never seen the context reads the same from it."""
    pair = case.pair
    with Witness(lambda question: _read_elsewhere(pair, question)) as witness:
        rows = len(QUERIES)
        state = case.write(case.context(rows=rows))
        here = case.read(state, Tokens.from_rows(QUERIES))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            case.memory.save(state, path)
            there = witness.ask(json.dumps([str(path), QUERIES]).encode())
    case.same("the logits that another process read from the file", there["logits"], here)


def _read_elsewhere(pair: Pair, question: bytes) -> dict[str, Tensor]:
    path, queries = json.loads(question)
    torch.manual_seed(12345)  # what is not in the file comes out differently
    file = load_state(path)
    backbone = pair.language_model()
    if backbone.fingerprint != file.header.fingerprint:
        raise LawBroken("the state file names another language model than it was written with")
    reader = load_reader_of(file, pair.reader, backbone, path)
    memory = Memory(backbone, None, reader, config_of(file.header, path)).eval()
    with torch.no_grad():
        return {"logits": memory.read(file.state, Tokens.from_rows(queries)).logits}


@law(examples=1)
def nothing_left_behind(case: Case) -> None:
    """When a context and its state are dropped, no object of the process holds the context any more: not as ids, nor as
    text, nor as embeddings."""
    pair, seed = case.pair, case.seed
    with Witness(lambda _: _search(pair, seed)) as witness:
        witness.ask()


def _search(pair: Pair, seed: int) -> dict[str, Tensor]:
    old = freeze()
    case = Case(pair, seed)
    memory = case.memory

    def use(ids: list[int]) -> Tensor:
        tokens = case.tokens([ids])
        case.read(case.write(tokens), tokens)
        return memory.backbone.embed(torch.tensor(ids)).detach()

    use([72] * 24)
    secrets, embedded, alive = [], [], []
    for _ in range(3):
        secrets.append(case.secret(24))
        embedded.append(use(secrets[-1]))
        alive.append(_tensors() - len(embedded))
    if found := holders(secrets, embedded, old):
        raise LawBroken(f"the context is still in {'; in '.join(found[:3])}")
    # What holds contexts in a form of its own, or more and more of them.
    if alive[0] < alive[1] < alive[2]:
        raise LawBroken(
            f"tensors pile up with every write: {alive[0]}, {alive[1]}, {alive[2]} are alive"
        )
    return {}


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@law(examples=1)
def sealed(case: Case) -> None:
    """WRITE and READ touch nothing outside their process: they write no file, change no environment variable, open no
    connection and start no process."""
    pair, seed = case.pair, case.seed
    with Witness(lambda _: _watch(pair, seed)) as witness:
        witness.ask()


def _watch(pair: Pair, seed: int) -> dict[str, Tensor]:
    case = Case(pair, seed)

    def use() -> None:
        tokens = case.tokens([case.secret(8)])
        state = case.write(tokens)
        case.read(state, tokens)

    for _ in range(2):  # compilers may fill their caches, libraries load what they lack
        use()
    found: list[str] = []
    with watched(found):
        use()
    if found:
        raise LawBroken(f"a write or read {'; '.join(dict.fromkeys(found[:3]))}")
    return {}
