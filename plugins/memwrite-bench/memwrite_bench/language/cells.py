"""One cell: a candidate on a few passages, measured once and kept as a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from memwrite_text import retrieve

from memwrite.errors import MemwriteError
from memwrite.evaluation.controls import evaluation_mode
from memwrite.evaluation.machine import machine
from memwrite.evaluation.value_kept import Prediction, predict
from memwrite.memory import Memory
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import Example, collate
from memwrite.utils.hashing import exact_digest_of
from memwrite_bench.language.candidates import Candidate
from memwrite_bench.language.retrieval import QUERY, predict_by_retrieval

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What was measured of some passages.

    Attributes:
        contexts: how many passages.
        state_bytes: of one memory.
        state_floats: likewise.
        untrained: whether the writer or the reader has parameters, and nobody trained them.
        write_seconds: of all passages, written together.
        read_seconds: from a state to the prediction of the passage behind it; of all of them, read together.
        first_token_seconds: from one state and a query of one token to the next token.
        behind: the prediction of each text behind its context.
        again: the prediction of each context, read again behind its own memory; [] where it is too long, or
            found by retrieval.
        failure: why nothing was measured; "" if it was.
        machine: that it was measured on.
    """

    contexts: int
    state_bytes: int
    state_floats: int
    untrained: bool
    write_seconds: float
    read_seconds: float
    first_token_seconds: float
    behind: list[Prediction]
    again: list[Prediction]
    failure: str
    machine: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Make a result from data, the inverse of `dataclasses.asdict`.

        Raises:
            TypeError, ValueError, KeyError: it is no such data.
        """
        both = {name: [_prediction(p) for p in data[name]] for name in ("behind", "again")}
        return cls(**{**data, **both})


def _prediction(data: dict[str, Any]) -> Prediction:
    return Prediction(tuple(data["bits"]), tuple(data["choices"]), data["right"])


def cell(candidate: Candidate, beside: Memory, part: Sequence[Example], folder: Path) -> Path:
    """Return the file of a cell, named by all that its result depends on."""
    description = [
        beside.backbone.fingerprint,
        str(beside.backbone.info.dtype),
        [candidate.writer.name, dict(candidate.writer.params)],
        [candidate.reader.name, dict(candidate.reader.params), candidate.sentences],
        [[example.context, example.queries] for example in part],
    ]
    digest = exact_digest_of(json.dumps(description, sort_keys=True, default=str))
    return folder / f"{candidate.name.replace(' ', '-')}-{digest[:16]}.json"


def load(path: Path) -> Result | None:
    """Read the result in a file; None if it is not there or not a whole one, so that it is to be measured."""
    try:
        return Result.from_dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError, KeyError):
        return None


def as_json(result: Result) -> bytes:
    """Return a result as the text of its file."""
    return json.dumps(asdict(result)).encode()


def measure(candidate: Candidate, beside: Memory, part: Sequence[Example]) -> Result:
    """Write the passages, read what is behind them, and time both; a pair that cannot says why in the result."""
    try:
        memory = candidate.memory(beside)
        with evaluation_mode(memory):
            return _measure(memory, part, candidate.sentences)
    except MemwriteError as error:
        where = machine(beside.backbone.info.device)
        return Result(len(part), 0, 0, False, 0.0, 0.0, 0.0, [], [], str(error), where)


def _measure(memory: Memory, part: Sequence[Example], sentences: int | None) -> Result:
    contexts = collate(part)["batch"].context
    texts = [example.queries[0] for example in part]
    state, write_seconds = _timed(lambda: memory.write(contexts).state)
    passages = [example.context for example in part]

    def read() -> list[Prediction]:
        if sentences is None:
            return predict(memory, state, texts)
        return predict_by_retrieval(memory, state, passages, texts, sentences)

    behind, read_seconds = _timed(read)
    one, query = _first(state), Tokens.from_rows([texts[0][:1]])

    def first() -> object:
        if sentences is None:
            return memory.read(one, query)
        return memory.read(
            retrieve(one, Tokens.from_rows([passages[0][-QUERY:]]), sentences), query
        )

    _, first_token = _timed(first)
    again = sentences is None and 2 * max(map(len, passages)) <= memory.backbone.info.positions
    return Result(
        contexts=len(part),
        state_bytes=state.nbytes // len(part),
        state_floats=state.floats // len(part),
        untrained=any(True for part in (memory.writer, memory.reader) for _ in part.parameters()),
        write_seconds=write_seconds,
        read_seconds=read_seconds,
        first_token_seconds=first_token,
        behind=behind,
        again=predict(memory, state, passages) if again else [],
        failure="",
        machine=machine(memory.backbone.info.device),
    )


def _first(state: MemoryState) -> MemoryState:
    return state.rows(slice(0, 1)) if state.tensors else state


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
