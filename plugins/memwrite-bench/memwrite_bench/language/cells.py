"""One cell: a candidate on a few passages, measured once and kept as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from memwrite_text import retrieve

from memwrite.checkpoints.state_file import load_state
from memwrite.errors import MemwriteError
from memwrite.evaluation.controls import evaluation_mode
from memwrite.evaluation.machine import machine
from memwrite.evaluation.value_kept import Prediction, predict
from memwrite.memory import Memory
from memwrite.state import MemoryState, Tokens
from memwrite.tasks.base import Example, collate
from memwrite.utils.hashing import exact_digest_of
from memwrite.utils.timing import timed
from memwrite_bench.language.candidates import FULL, Candidate
from memwrite_bench.language.retrieval import QUERY, predict_by_retrieval

#: Tokens of a context that are read again behind its memory, at most.
RECALLED = 256
#: First tokens that are timed; the median counts.
_TIMES = 3


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
        first_token_seconds: from one state at hand and a query of one token to the next token.
        disk_seconds: likewise, from the file of that state.
        reread_seconds: likewise, from its context, which is read again; None but of the whole context kept.
        behind: the prediction of each text behind its context.
        again: the prediction of each context's beginning, read again behind its own memory; [] where both are too
            long, or found by retrieval.
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
    disk_seconds: float
    reread_seconds: float | None
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
            return _measure(memory, part, candidate)
    except MemwriteError as error:
        where = machine(beside.backbone.info.device)
        return Result(len(part), 0, 0, False, 0, 0, 0, 0, None, [], [], str(error), where)


def _measure(memory: Memory, part: Sequence[Example], candidate: Candidate) -> Result:
    contexts, sentences = collate(part)["batch"].context, candidate.sentences
    device = memory.backbone.info.device
    texts = [example.queries[0] for example in part]
    state, write_seconds = timed(device, lambda: memory.write(contexts).state)
    passages = [example.context for example in part]

    def read() -> list[Prediction]:
        if sentences is None:
            return predict(memory, state, texts)
        return predict_by_retrieval(memory, state, passages, texts, sentences)

    behind, read_seconds = timed(device, read)
    beginnings = [passage[:RECALLED] for passage in passages]
    needed = max(map(len, passages)) + max(map(len, beginnings))
    again = sentences is None and needed <= memory.backbone.info.positions
    at_hand, from_disk, reread = _first_token(memory, _first(state), part[0], candidate)
    return Result(
        contexts=len(part),
        state_bytes=state.nbytes // len(part),
        state_floats=state.floats // len(part),
        untrained=any(True for part in (memory.writer, memory.reader) for _ in part.parameters()),
        write_seconds=write_seconds,
        read_seconds=read_seconds,
        first_token_seconds=at_hand,
        disk_seconds=from_disk,
        reread_seconds=reread,
        behind=behind,
        again=predict(memory, state, beginnings) if again else [],
        failure="",
        machine=machine(device),
    )


def _first_token(
    memory: Memory, one: MemoryState, example: Example, candidate: Candidate
) -> tuple[float, float, float | None]:
    """Return the seconds to the first token from a state, from its file, and from the context of the whole cache."""
    query = Tokens.from_rows([example.queries[0][:1]])
    asking = Tokens.from_rows([example.context[-QUERY:]])

    def first(state: MemoryState) -> object:
        if candidate.sentences is not None:
            state = retrieve(state, asking, candidate.sentences)
        return memory.read(state, query)

    device = memory.backbone.info.device
    with TemporaryDirectory() as folder:
        path = f"{folder}/state.safetensors"
        memory.save(one, path)
        pairs = [
            (
                timed(device, lambda: first(one))[1],
                timed(device, lambda: first(memory.adopt(load_state(path), path)))[1],
            )
            for _ in range(_TIMES)
        ]
    at_hand, from_disk = (median(seconds) for seconds in zip(*pairs, strict=True))
    if candidate.label != FULL:
        return at_hand, from_disk, None
    context = Tokens.from_rows([example.context])
    return at_hand, from_disk, timed(device, lambda: first(memory.write(context).state))[1]


def _first(state: MemoryState) -> MemoryState:
    return state.rows(slice(0, 1)) if state.tensors else state
