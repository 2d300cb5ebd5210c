"""The writer of low-rank weights by the next-token loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_fastweights import naive
from memwrite_specs.backbones import TINY
from memwrite_specs.testing import MODELS
from torch.testing import assert_close

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError

EXACT = {"atol": 1e-11, "rtol": 1e-11}
TEXTS = [[7, 3, 11, 5, 2, 9, 1, 4], [6, 1, 8]]


def build(backbone: dict[str, Any] | None = None, **params: Any) -> Memory:
    """A small model, and weights that have left their start."""
    backbone = backbone or {"type": TINY, "dtype": "float64"}
    reader = {"name": "per-example-lora"}
    own = {"chunk": 3, "rank": 2, "layers": [0, 1], "learning_rate": 1.0}
    writer = {"name": "ttt-e2e", "params": {**own, **params}}
    memory = Memory.from_config({"backbone": backbone, "writer": writer, "reader": reader}).eval()
    random = torch.Generator().manual_seed(0)
    for start in memory.writer.parameters():
        start.data += 0.1 * torch.randn(start.shape, generator=random, dtype=start.dtype)
    return memory


def by_oracle(memory: Memory, ids: list[int], clip: float) -> dict[str, torch.Tensor]:
    state = memory.writer.init(1)
    names = {n: f"model.layers.{{}}.mlp.{n}_proj.weight" for n in ("up", "down")}
    changes = {
        f"{side}.{names[n].format(layer)}": state[f"{side}.{n}"][0, layer]
        for side in "AB"
        for n in names
        for layer in (0, 1)
    }
    opening = memory.backbone.info.bos_id
    after = naive.end_to_end(memory.model, changes, ids, opening, 8.0, 3, 1.0, clip)
    return {
        f"{side}.{n}": torch.stack([after[f"{side}.{names[n].format(i)}"] for i in (0, 1)])
        for side in "AB"
        for n in names
    }


@pytest.mark.parametrize("clip", [0.1, 100.0])
def test_equals_the_oracle(clip: float) -> None:
    """Texts of different lengths, the last chunks short, gradients cut and not."""
    memory = build(clip=clip)
    state = memory.write(Tokens.from_rows(TEXTS)).state
    for row, ids in enumerate(TEXTS):
        for name, x in by_oracle(memory, ids, clip).items():
            assert_close(state[name][row], x, **EXACT)


def test_what_was_read_is_foreseen() -> None:
    """Read again, the text is less of a surprise."""
    memory = build(learning_rate=0.5)
    text = Tokens.from_rows([TEXTS[0]])
    first = memory.write(text)
    again = memory.write(text, first.state)
    assert (again.trace["loss"] < first.trace["loss"]).all()


def test_training_needs_a_second_derivative() -> None:
    memory = build({**MODELS["llama"], "attention": "sdpa"})
    start, text = memory.writer.init(2), Tokens.from_rows(TEXTS)
    with pytest.raises(ConfigError, match="attention=eager"):
        memory.writer.write(start, text)
    with torch.no_grad():
        memory.writer.write(start, text)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"projections": ["q"]}, "projections must be"),
        ({"layers": [5]}, "layer 5"),
        ({"layers": [1, 1]}, "different numbers"),
    ],
)
def test_bad_settings(params: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(**params)
