"""A task to train on in tests: examples of very different sizes, of which something is learnt at once."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.plugins import TaskPlugin, registry
from memwrite.plugins.table import Owner
from memwrite.tasks.base import IGNORED, Example, Examples

ANSWER = 5


@dataclass(frozen=True)
class RaggedConfig:
    """Exact match from which on a stage is left."""

    advance: float = 0.02


@dataclass
class Ragged:
    """One to three queries with one to six labels each, all of them the same id; contexts of up to nine tokens."""

    advance: float
    stages: list[int] = field(default_factory=lambda: [1, 2, 3])
    starts: list[int] = field(default_factory=lambda: [0])

    def training(self, count: int, seed: int) -> Examples:
        return _Drawn(f"training/{seed}", count)

    def evaluation(self) -> Examples:
        return _Drawn("evaluation", 6)

    def fresh(self, count: int, seed: int) -> Examples:
        return _Drawn(f"fresh/{seed}", count)


@dataclass(frozen=True)
class _Drawn:
    key: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        rng = random.Random(f"{self.key}/{index}")
        queries, labels = [], []
        for _ in range(rng.randint(1, 3)):
            question = [rng.randrange(60) for _ in range(rng.randint(1, 3))]
            answer = [ANSWER] * rng.randint(1, 6)
            queries.append(question + answer)
            labels.append([IGNORED] * len(question) + answer)
        return Example([rng.randrange(60) for _ in range(rng.randint(1, 9))], queries, labels)


def _build(config: RaggedConfig, tokenizer: Tokenizer) -> Ragged:
    return Ragged(config.advance)


def install() -> None:
    """Make the task known by the name of "ragged", once a process."""
    table = registry().tasks
    if "ragged" not in table.entries:
        plugin = TaskPlugin(
            api=2, name="ragged", summary="for tests", config=RaggedConfig, build=_build
        )
        table.add(plugin, Owner("tests", "0", "ragged"))


def described(out: Path, **training: Any) -> dict[str, Any]:
    """A config that trains a gradient writer on it in a second, with dropout off, in float64."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    without = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    writer = {"slots": 2, "steps": 2, "write_head": True, "reconstruction_weight": 0.3}
    return {
        "backbone": {
            "type": "gpt2",
            "params": {**sizes, **without},
            "tokenizer": "characters",
            "attention": "eager",
            "dtype": "float64",
            "trainable": True,
        },
        "writer": {"name": "gradient", "params": writer},
        "reader": {"name": "prefix"},
        "task": {"name": "ragged"},
        "training": {
            "out": str(out),
            "steps": 5,
            "batch_size": 8,
            "warmup": 1,
            "every": 5,
            "learning_rate": 0.03,
            "save_dtype": "float64",
            **training,
        },
    }


def weights(run: Path) -> Mapping[str, Tensor]:
    """All weights of a run folder."""
    files = [run / "weights.safetensors", run / "backbone" / "model.safetensors"]
    return {
        n: w
        for file in files
        if file.exists()
        for n, w in safetensors.torch.load_file(file).items()
    }


def distance(run: Path, other: Path) -> float:
    """The largest difference between weights of two run folders."""
    one, two = weights(run), weights(other)
    assert one
    assert one.keys() == two.keys()
    return max(float((one[n] - two[n]).abs().max()) for n in one if one[n].numel())


def same(run: Path, other: Path) -> bool:
    """Whether two run folders hold the same weights, bit for bit."""
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
