"""What is done for one point of a sweep: it is trained, if it learns, and evaluated."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memwrite.config import Config, to_dict
from memwrite.errors import MemwriteError
from memwrite.evaluation.machine import machine
from memwrite.evaluation.run import evaluate_run
from memwrite.memory import Memory
from memwrite.training.folder import REQUESTED, finished
from memwrite.training.run import train
from memwrite.training.stages import LOG
from memwrite.utils.atomic import write_bytes
from memwrite_bench.capacity.runs import training_digest
from memwrite_bench.sharing import CELLS
from memwrite_bench.sweep.points import Point


@dataclass(frozen=True)
class Result:
    """What came of one point.

    Attributes:
        name: of the point.
        examples: that were asked for; None for all that the task has.
        evaluation: as `memwrite eval --json` prints it; None where there is none.
        failure: why, in words.
        training: steps, seconds and last losses; None where nothing was trained.
        machine: that it was measured on.
    """

    name: str
    examples: int | None
    evaluation: dict[str, Any] | None
    failure: str
    training: dict[str, Any] | None
    machine: str


def measured(name: str, folder: Path, examples: int | None) -> Result | None:
    """Return the result of a point on so many examples; None where there is none, so that it is to be measured."""
    try:
        result = Result(**json.loads(_path(name, folder).read_bytes()))
    except (OSError, TypeError, ValueError):
        return None
    return result if result.examples == examples else None


def _path(name: str, folder: Path) -> Path:
    return folder / CELLS / f"{name}.json"


def measure(point: Point, folder: Path, examples: int | None) -> None:
    """Train a point if it learns, evaluate it, and leave the result, or why there is none, in its file.

    Raises:
        StorageError: the file cannot be written.
    """
    evaluation, failure, training = None, "", None
    try:
        with redirect_stdout(sys.stderr):  # where a training says how far it is
            source, overrides = _source(point)
        if isinstance(source, Path):
            training = training_digest(source / LOG)
        evaluation = evaluate_run(source, overrides, examples=examples).as_dict()
    except MemwriteError as error:
        failure = str(error)
    result = Result(point.name, examples, evaluation, failure, training, machine())
    write_bytes(_path(point.name, folder), json.dumps(asdict(result), indent=1).encode())


def _source(point: Point) -> tuple[Path | Mapping[str, Any], tuple[str, ...]]:
    """Return what to evaluate, with overrides; it is trained first where it learns and has not been."""
    if point.run is not None:
        return point.run, point.overrides
    out = Path(point.config.training.out)
    if not finished(out) and not _learns(point.config):
        return to_dict(point.config), ()
    if not finished(out) or (out / REQUESTED).exists():
        train(to_dict(point.config))
    return out, ()


def _learns(config: Config) -> bool:
    if config.backbone.trainable or config.backbone.lora_rank:
        return True
    memory = Memory.from_config(config)
    return any(True for part in (memory.writer, memory.reader) for _ in part.parameters())
