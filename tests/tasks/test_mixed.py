"""Questions of several kinds of files, in turns that follow from an example's index alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import CODEC, SAMPLES

from memwrite.config import part_config
from memwrite.errors import ConfigError
from memwrite.plugins.registry import registry
from memwrite.tasks.base import Example
from memwrite.tasks.mixed import turns

PLUGIN = registry().task("mixed-questions")


def mixed(folder: Path, **params: Any) -> Any:
    for name in ("squad", "babi"):
        (folder / name).write_text(SAMPLES[name])
    params = {
        "squad": {"files": ["squad"], "folder": str(folder), "held_out": 0.5},
        "babi": {"files": ["babi"], "folder": str(folder), "held_out": 0.5},
        **params,
    }
    return PLUGIN.build(part_config(PLUGIN.config, params, "task.params"), CODEC)


def kind(example: Example) -> str:
    return "squad" if "Question:" in CODEC.decode(example.queries[0]) else "babi"


def test_parts_have_their_turns(tmp_path: Path) -> None:
    """Three turns of one for one of the other, of two examples each; each part goes through its own in its own order."""
    found = mixed(tmp_path, shares={"squad": 3}, bucket=2).training(24, seed=1)
    assert [kind(found[i]) for i in range(0, 24, 2)] == ["squad", "squad", "babi", "squad"] * 3
    assert all(kind(found[i]) == kind(found[i + 1]) for i in range(0, 24, 2))
    for name in ("squad", "babi"):
        alone = mixed(tmp_path, **{{"squad": "babi", "babi": "squad"}[name]: None})
        own = [found[i] for i in range(24) if kind(found[i]) == name]
        expected = alone.training(24, seed=1)
        assert own == [expected[i] for i in range(len(own))]
    with pytest.raises(IndexError):
        found[24]


def test_everything_held_out_is_evaluated(tmp_path: Path) -> None:
    task = mixed(tmp_path)
    assert {kind(example) for example in task.evaluation()} == {"squad", "babi"}
    fresh = task.fresh(6, seed=0)
    assert [kind(fresh[i]) for i in range(6)] == ["squad", "babi"] * 3


@given(shares=st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_turns_are_spread_evenly(shares: list[int]) -> None:
    """Every part has its share, and nowhere is one behind by more than one turn of each part."""
    found = turns(shares)
    assert [found.count(part) for part in range(len(shares))] == shares
    for done in range(len(found) + 1):
        for part, share in enumerate(shares):
            assert abs(found[:done].count(part) - done * share / len(found)) <= len(shares)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"squad": None, "babi": None}, "nothing to mix"),
        ({"shares": {"squad": 0}}, "shares are counts from 1 on of squad, babi, got squad: 0"),
        ({"shares": {"locomo": 1}}, "got locomo: 1"),
        ({"bucket": 0}, "bucket must be at least 1"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    tmp_path: Path, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        mixed(tmp_path, **params)
