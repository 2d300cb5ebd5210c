"""What the laws are held on: memories that share nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from memwrite_specs.pair import Pair
from memwrite_specs.reference import READERS, WRITERS
from torch import Tensor

from memwrite import Memory

PAIR = Pair(WRITERS["prefix"], READERS["prefix"])


def logits(memory: Memory) -> Tensor:
    backbone = memory.backbone
    return backbone.logits(backbone.forward(backbone.embed(torch.tensor([[5, 6]]))).hidden)


def test_each_memory_has_a_language_model_of_its_own() -> None:
    first, second = PAIR.memory(), PAIR.memory()
    before = logits(second)
    assert torch.equal(logits(first), before)
    for weight in first.model.parameters():
        weight.data.zero_()
    assert not torch.equal(logits(first), before)
    assert torch.equal(logits(second), before)
    assert torch.equal(logits(PAIR.memory()), before)


def test_each_memory_has_parameters_of_its_own() -> None:
    """A plugin that keeps something in its parameters keeps it from the next law."""
    built = []

    def kept(config, backbone):
        built.append(config)
        return PAIR.writer.build(config, backbone)

    pair = replace(PAIR, writer=replace(PAIR.writer, build=kept))
    pair.memory(), pair.memory()
    assert built[0] == built[1]
    assert built[0] is not built[1]
