"""Shared by all tests: tiny random models."""

from __future__ import annotations

from typing import Any

import pytest
from support import MODELS, Build

from memwrite import Memory


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The backbone part of a config, of every family in turn, in float64."""
    return {**MODELS[request.param], "dtype": "float64", "attention": "eager"}


@pytest.fixture
def build(model: dict[str, Any]) -> Build:
    """Builds a Memory from a writer, a reader, the writer's parameters and changes of the backbone."""

    def build(
        writer: str = "no-memory", reader: str = "no-memory", params: Any = None, **changes: Any
    ) -> Memory:
        return Memory.from_config(
            {
                "backbone": {**model, **changes},
                "writer": {"name": writer, "params": params or {}},
                "reader": {"name": reader},
            }
        )

    return build
