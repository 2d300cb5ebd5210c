"""A batch in parts trains as the whole does: one after the other, or in several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ragged
import yaml

from memwrite.errors import ConfigError
from memwrite.training.run import train


@pytest.fixture(autouse=True)
def _task() -> None:
    ragged.install()


def test_parts_of_a_batch_one_after_the_other(tmp_path: Path) -> None:
    """Weights, losses and the curriculum's exact match are those of whole batches, though the parts have different
    numbers of queries and labels.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_it(whole)
    train_it(parts, accumulate=4)
    assert ragged.distance(whole, parts) < 1e-10
    entries, again = (
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (whole, parts)
    )
    assert entries[0]["loss"] == pytest.approx(again[0]["loss"], rel=1e-7)
    assert entries[0]["exact_match"] == again[0]["exact_match"] > 0
    assert entries[0]["stage"] == again[0]["stage"] > 1


def train_it(out: Path, **training: object) -> None:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(ragged.described(out, **training)))
    train(path)


def test_parts_must_be_equal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        train_it(tmp_path / "run", accumulate=3)
