"""Runs that never trained, for the capacity report to measure, and results that were never measured."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from memwrite_bench.capacity.cells import Cell
from memwrite_bench.capacity.cells import Result as Measured
from memwrite_bench.capacity.cost import Cost, Seconds
from memwrite_bench.capacity.runs import Run
from memwrite_bench.cli import bench

from memwrite import Memory
from memwrite.cli.main import main
from memwrite.config import Config, load_config
from memwrite.evaluation.key_value import KeyValueEvaluation
from memwrite.evaluation.scores import Scores, wilson

CONFIG: dict[str, Any] = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
        "tokenizer": "characters",
    },
    "writer": {"name": "gradient", "params": {"slots": 2, "steps": 1, "most_steps": 2}},
    "reader": {"name": "prefix"},
    "task": {"name": "kv-retrieval", "params": {"pairs": 2, "curriculum": [1]}},
}
PLAIN: Config = load_config(CONFIG)
NO_MEMORY = {"writer": {"name": "no-memory"}, "reader": {"name": "no-memory"}}
FULL = {"writer": {"name": "full-context"}, "reader": {"name": "key-value"}}


def save(folder: Path, seed: int = 0, **parts: Any) -> Path:
    """The run folder of a model that never trained."""
    Memory.from_config({**CONFIG, **parts, "seed": seed}).save_run(folder)
    return folder


def call(*words: object) -> Result:
    """Run a command line as `memwrite` does, whether or not this distribution is installed."""
    group = type(main)("memwrite", commands={"bench": bench})
    return CliRunner().invoke(group, [str(word) for word in words])


def toy_runs(root: Path) -> list[Path]:
    """Two seeds of a gradient writer, and both baselines."""
    (first, second) = (save(root / f"toy-s{seed}", seed) for seed in (0, 1))
    (first / "README.md").write_text("tuned <twice> & failed")
    log = [
        {"step": 50, "seconds": 2.5, "loss": 1.5, "stage": 1},
        {"step": 90, "seconds": 5, "stage": 2},
    ]
    (first / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"step": 1')
    return [first, second, save(root / "none", **NO_MEMORY), save(root / "full", **FULL)]


def fake_run(label: str, seed: int = 0, pairs: int = 2, **training: Any) -> Run:
    out = replace(PLAIN.training, out=f"runs/{label}", **training)
    config = replace(PLAIN, seed=seed, training=out)
    return Run(label, Path(label), config, f"{label:0<32}", pairs, (1,), "cpu")


def fake_result(cell: Cell, exact: float = 0.5, outcome: Any = "measured") -> Measured:
    """As if `exact` of 100 independent answers had been right."""
    scores = Scores(exact, wilson(exact, 100), 100, exact, exact, exact)
    none = replace(scores, exact_match=0.0, binding=None)
    recall = _recall(cell, 32, 128, 5.0, scores, none, none, none, None)
    cost = Cost(Seconds(1, 0.25, 0.5, None, None), Seconds(4, 0.5, 1.0, 0.25, 2.0), 999)
    measured = (recall, cost) if outcome == "measured" else (None, None)
    place = (cell.run.fingerprint, cell.pairs, cell.steps, cell.seed, cell.contexts)
    return Measured(*place, outcome, "" if outcome == "measured" else "a reason", *measured, "here")


def _recall(
    cell: Cell, floats: int, size: int, surprise: float, *scores: Scores | None
) -> KeyValueEvaluation:
    cost = {"state_floats": floats, "state_bytes": size, "cache_bytes": None}
    seconds = {"write_seconds": 0.1, "read_seconds": 0.2}
    found: Any = scores
    return KeyValueEvaluation(cell.contexts, cell.pairs, 2, surprise, *found, **cost, **seconds)


def any_result(cell: Cell) -> Measured:
    """Figures all different from each other, or a failure."""
    rng = random.Random(cell.name)

    def scores() -> Scores:
        drawn = [rng.random() for _ in range(4)]
        return Scores(drawn[0], wilson(drawn[0], 100), 100, *drawn[1:])

    def seconds(batch: int) -> Seconds:
        return Seconds(batch, *(rng.lognormvariate(-3, 2) for _ in range(4)))

    outcome = rng.choices(["measured", "too long", "diverged"], [8, 1, 1])[0]
    sizes = (rng.randrange(9**6), rng.randrange(9**6))
    recall = _recall(cell, *sizes, 9 * rng.random(), *(scores() for _ in range(5)))
    cost = Cost(seconds(1), seconds(rng.randrange(2, 99)), rng.randrange(9**8))
    result = fake_result(cell, 0, outcome)
    return replace(result, recall=recall, cost=cost) if result.recall else result
