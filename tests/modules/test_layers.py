"""Which layers a writer works at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import MODELS

from memwrite import Memory
from memwrite.errors import ConfigError
from memwrite.modules.layers import chosen_layers

PARTS = {"writer": {"name": "no-memory"}, "reader": {"name": "no-memory"}}
INFO = replace(Memory.from_config({"backbone": MODELS["llama"], **PARTS}).backbone.info, layers=3)


def test_layers_are_all_or_those_that_are_named_in_order() -> None:
    assert chosen_layers([], INFO) == (0, 1, 2)
    assert chosen_layers([2, 0], INFO) == (0, 2)


@pytest.mark.parametrize(
    ("named", "layers", "said"),
    [
        ([1, 3], 3, "names layer 3, but the backbone has layers 0 to 2"),
        ([], 0, "this llama model has no attention layers"),
        ([0], 0, "this llama model has no attention layers"),
    ],
)
def test_what_is_not_there_is_refused(named: list[int], layers: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen_layers(named, replace(INFO, layers=layers))
