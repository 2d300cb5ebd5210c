"""One cell: what a candidate answers about a few passages, measured once and kept as a file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from memwrite_text import retrieve

from memwrite.backbones.generation import text_of
from memwrite.errors import MemwriteError
from memwrite.evaluation.controls import evaluation_mode
from memwrite.evaluation.machine import machine
from memwrite.memory import Memory
from memwrite.state import Tokens
from memwrite.tasks.base import IGNORED, collate
from memwrite.tasks.questions import QuestionsExample
from memwrite.utils.hashing import exact_digest_of
from memwrite_bench.language.candidates import Candidate


@dataclass(frozen=True)
class Result:
    """What was answered about some passages.

    Attributes:
        contexts: how many passages.
        answers: to every question, in order.
        state_bytes: of one memory; the mean where it grows with the passage.
        untrained: whether the writer or the reader has parameters, and nobody trained them.
        write_seconds: of all passages, written together.
        read_seconds: of all answers, generated together.
        failure: why nothing was measured; "" if it was.
        machine: that it was measured on.
    """

    contexts: int
    answers: list[str]
    state_bytes: int
    untrained: bool
    write_seconds: float
    read_seconds: float
    failure: str
    machine: str


def cell(
    candidate: Candidate, beside: Memory, part: Sequence[QuestionsExample], folder: Path
) -> Path:
    """Return the file of a cell, named by all that its result depends on."""
    description = [
        beside.backbone.fingerprint,
        str(beside.backbone.info.dtype),
        [candidate.writer.name, dict(candidate.writer.params)],
        [candidate.reader.name, dict(candidate.reader.params), candidate.sentences],
        [[example.context, example.queries, example.labels] for example in part],
    ]
    digest = exact_digest_of(json.dumps(description, sort_keys=True, default=str))
    return folder / f"{candidate.name.replace(' ', '-')}-{digest[:16]}.json"


def load(path: Path) -> Result | None:
    """Read the result in a file; None if it is not there or not a whole one, so that it is to be measured."""
    try:
        return Result(**json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError):
        return None


def as_json(result: Result) -> bytes:
    """Return a result as the text of its file."""
    return json.dumps(asdict(result)).encode()


def measure(candidate: Candidate, beside: Memory, part: Sequence[QuestionsExample]) -> Result:
    """Write the passages, and ask every question; a pair that cannot says why in the result."""
    try:
        memory = candidate.memory(beside)
        with evaluation_mode(memory):
            return _measure(memory, part, candidate.sentences)
    except MemwriteError as error:
        where = machine(beside.backbone.info.device)
        return Result(len(part), [], 0, False, 0, 0, str(error), where)


def _measure(memory: Memory, part: Sequence[QuestionsExample], sentences: int | None) -> Result:
    begun = time.perf_counter()
    state = memory.write(collate(part)["batch"].context).state
    written = time.perf_counter()
    rows: list[int] = []
    prompts: list[list[int]] = []
    longest = 0
    for row, example in enumerate(part):
        for asked, labels in zip(example.queries, example.labels, strict=True):
            rows.append(row)
            prompts.append(asked[: labels.count(IGNORED)])
            longest = max(longest, len(asked) - len(prompts[-1]))
    query = Tokens.from_rows(prompts)
    given = state.rows(torch.tensor(rows)) if state.tensors else state
    if sentences is not None:
        given = retrieve(given, query, sentences)
    new = memory.generate(given, query, max_new_tokens=longest).tolist()
    tokenizer, ends = memory.backbone.tokenizer, memory.backbone.info.end_ids
    return Result(
        contexts=len(part),
        answers=[tokenizer.decode(text_of(ids, ends)) for ids in new],
        state_bytes=state.nbytes // len(part),
        untrained=any(True for own in (memory.writer, memory.reader) for _ in own.parameters()),
        write_seconds=written - begun,
        read_seconds=time.perf_counter() - written,
        failure="",
        machine=machine(memory.backbone.info.device),
    )
