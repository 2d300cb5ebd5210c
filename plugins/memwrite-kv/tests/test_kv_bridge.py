"""Presses by their methods: duck-typed ones, without kvpress."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memwrite_kv.bridge import PressWriter
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError

ROWS = [[5, 6, 7, 8, 9, 40, 41, 42, 43], [10, 11], [11, 12, 13, 11, 12, 90, 91]]


def build(writer: str, family: str = "llama", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS[family], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": "key-value"},
        }
    )


class Knorm:
    """As kvpress's KnormPress, by its methods."""

    compression_ratio = 0.0

    def score(
        self, module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any
    ) -> Tensor:  # fmt: skip
        assert hidden_states.shape[1] == len(kwargs["cache_position"])
        return -keys.norm(dim=-1)


class KnormByCompress:
    compression_ratio = 0.0

    def compress(
        self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, *rest: Any
    ) -> Any:
        kept = int(keys.shape[2] * (1 - self.compression_ratio))
        index = (-keys.norm(dim=-1)).topk(kept, dim=-1).indices[..., None]
        index = index.expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index), values.gather(2, index)


class Observed:
    """As kvpress's ObservedAttentionPress."""

    def score(
        self,
        module: Any,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor,
        kwargs: Any,
    ) -> Tensor:
        module.masked = 1  # presses may set what they like: the model stays as it is
        assert isinstance(module, torch.nn.Module)
        assert any(hasattr(module, name) for name in ("q_proj", "c_attn"))
        count = torch.arange(keys.shape[2], 0, -1)
        return (attentions.sum(2) / count).unflatten(1, (keys.shape[1], -1)).mean(2)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("press", "options", "writer", "params"),
    [
        (Knorm(), {"slots": 4}, "knorm", {"slots": 4}),
        (Knorm(), {"ratio": 0.5, "sinks": 1}, "knorm", {"ratio": 0.5}),
        (KnormByCompress(), {"slots": 4}, "knorm", {"slots": 4, "sinks": 0}),
        (Observed(), {"slots": 4, "attentions": True}, "h2o", {"slots": 4, "value_norm": False}),
    ],
)
def test_a_press_chooses_as_the_writer_of_its_score(
    family: str, press: Any, options: dict[str, Any], writer: str, params: dict[str, Any]
) -> None:
    """Beside other rows, and in a second write where the score is of the keys alone."""
    options = {"sinks": params.get("sinks", 1), **options}
    memory = build(writer, family, **params)
    bridge = PressWriter(press, memory.backbone, **options)
    with torch.no_grad():
        tokens = Tokens.from_rows(ROWS)
        found = bridge.write(bridge.init(3), tokens).state
        expected = memory.write(tokens).state
        states = [(found, expected)]
        if writer == "knorm":
            states.append((bridge.write(found, tokens).state, memory.write(tokens, expected).state))
    for mine, theirs in states:
        for name in ("keys", "values", "mask", "next_position", "latent.position"):
            torch.testing.assert_close(mine[name], theirs[name])
    assert not any(hasattr(module, "masked") for module in memory.model.modules())


def test_a_memory_takes_it_for_its_writer() -> None:
    parts = build("full-context")
    writer = PressWriter(Knorm(), parts.backbone, slots=4)
    memory = Memory(parts.backbone, writer, parts.reader, parts.config).eval()
    state = memory.write(Tokens.from_rows(ROWS)).state
    assert state["keys"].shape[3] == 4
    assert memory.read(state, Tokens.from_rows(ROWS)).logits.isfinite().all()


class Merging(KnormByCompress):
    def compress(self, *arguments: Any) -> Any:
        keys, values = super().compress(*arguments)
        return keys + 1, values


def test_a_press_that_makes_keys_of_its_own_is_refused() -> None:
    memory = build("knorm", slots=4)
    bridge = PressWriter(Merging(), memory.backbone, slots=4)
    with pytest.raises(InputError, match="Merging was to keep 4 of 9 slots"):
        bridge.write(bridge.init(1), Tokens.from_rows(ROWS[:1]))


@pytest.mark.parametrize(
    ("press", "budget", "message"),
    [
        (object(), {"slots": 4}, "a press has a method score or compress"),
        (Knorm(), {"slots": 0}, "slots must be at least 1"),
        (Knorm(), {"slot": 4}, "budget of a press"),
    ],
)
def test_wrong_presses(press: Any, budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PressWriter(press, build("knorm").backbone, **budget)
