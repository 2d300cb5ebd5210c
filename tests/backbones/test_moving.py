"""A memory that is moved or cast: the model follows, states and learned parameters keep their dtype."""

from __future__ import annotations

import pytest
import torch
from support import described

from memwrite import Memory
from memwrite.errors import ConfigError


def memory() -> Memory:
    return Memory.from_config(
        {
            "backbone": vars(described("llama")) | {"dtype": "float32"},
            "writer": {"name": "forward", "params": {"slots": 2}},
            "reader": {"name": "prefix"},
        }
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_is_for_the_model_alone(dtype: torch.dtype) -> None:
    cast = memory().to(dtype)
    assert cast.backbone.info.dtype == dtype
    assert {p.dtype for p in cast.model.parameters()} == {dtype}
    assert {p.dtype for p in cast.writer.parameters()} == {torch.float32}
    assert cast.write("a fact").state["memory"].dtype == torch.float32


def test_a_cast_that_states_cannot_follow_is_refused() -> None:
    whole = memory()
    with pytest.raises(ConfigError, match="build it anew"):
        whole.to(torch.float64)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_a_move_takes_every_tensor_along() -> None:
    moved = memory().to("meta")
    assert {p.device.type for p in moved.parameters()} == {"meta"}
