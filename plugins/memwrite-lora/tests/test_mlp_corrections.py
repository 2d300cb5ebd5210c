"""Low-rank corrections of gate, up and down against models whose weights were edited, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from memwrite_lora import PER_EXAMPLE_LORA, STATIC_LORA, PerExampleLoraConfig, StaticLoraConfig
from memwrite_specs.testing import end_padded, families, plain_generate
from torch import Tensor

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.decoder_layers import blocks
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.errors import ConfigError

LAYERS, RANK, ALPHA = (0, 1), 2, 3.0
LISTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
NAMES = {"llama": ("q", "gate", "up", "down"), "gpt2": ("o", "up", "down"), "phi3": ("gate", "up")}
each_family = pytest.mark.parametrize("family", NAMES)


def weight(model: Any, layer: int, name: str) -> Tensor:
    """A view (out, in) of one projection's weight."""
    mlp = blocks(model)[layer].mlp
    if name in ("q", "o"):
        return families.weight(model, layer, name)  # type: ignore[no-any-return]
    if hasattr(mlp, "c_fc"):
        return (mlp.c_fc if name == "up" else mlp.c_proj).weight.data.T  # type: ignore[no-any-return]
    if hasattr(mlp, "gate_up_proj") and name != "down":
        return mlp.gate_up_proj.weight.data.chunk(2)[("gate", "up").index(name)]  # type: ignore[no-any-return]
    return getattr(mlp, f"{name}_proj").weight.data  # type: ignore[no-any-return]


def states(model: Any, names: tuple[str, ...]) -> MemoryState:
    """Two memories with random matrices."""
    draw, shapes = torch.Generator().manual_seed(0), {}
    for name in names:
        outputs, inputs = weight(model, 0, name).shape
        shapes[f"A.{name}"] = (len(LAYERS), RANK, inputs)
        shapes[f"B.{name}"] = (len(LAYERS), outputs, RANK)
    tensors = {
        name: 0.3 * torch.randn(2, *shape, dtype=torch.float64, generator=draw)
        for name, shape in shapes.items()
    }
    return MemoryState(StateSpec("lowrank", shapes, LAYERS, torch.float64), tensors)


@contextmanager
def edited(model: Any, matrices: Mapping[str, Tensor], names: tuple[str, ...]) -> Iterator[None]:
    """The plain model with the weights W + (α/r)·B A, until the block is left."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in names:
        for index, layer in enumerate(LAYERS):
            down, up = matrices[f"A.{name}"][index], matrices[f"B.{name}"][index]
            weight(model, layer, name).add_(ALPHA / RANK * up @ down)
    try:
        yield
    finally:
        model.load_state_dict(kept)


def built(family: str, reader: str) -> tuple[Memory, MemoryState, list[dict[str, Tensor]]]:
    """A memory, the state that it reads, and the matrices of each row."""
    described, names = BackboneConfig(**families.model(family)), NAMES[family]
    backbone = load_backbone(described)
    state = states(backbone.model, names)
    rows = [{name: tensor[row] for name, tensor in state.tensors.items()} for row in range(2)]
    if reader == "per-example-lora":
        params: dict[str, Any] = {"alpha": ALPHA}
        module: Any = PER_EXAMPLE_LORA.build(PerExampleLoraConfig(**params), backbone, state.spec)
    else:
        params = {"rank": RANK, "alpha": ALPHA, "projections": [*names], "layers": [*LAYERS]}
        spec = StateSpec("empty", {})
        module = STATIC_LORA.build(StaticLoraConfig(**params), backbone, spec)
        module.load_state_dict(rows[0])
        state, rows = MemoryState(spec, {}), [rows[0], rows[0]]
    config = Config(described, reader=PartConfig(reader, params))
    return Memory(backbone, None, module, config).eval(), state, rows


@each_family
@pytest.mark.parametrize("reader", ["per-example-lora", "static-lora"])
@torch.no_grad()
def test_every_row_reads_and_continues_as_the_edited_model(family: str, reader: str) -> None:
    memory, state, rows = built(family, reader)
    model = load_backbone(BackboneConfig(**families.model(family))).model
    query = Tokens.from_rows(LISTS)
    logits = memory.read(state, query).logits
    new = memory.generate(state, query, max_new_tokens=5)
    for index, ids in enumerate(LISTS):
        plain = model(torch.tensor([ids]), use_cache=False).logits[0]
        with edited(model, rows[index], NAMES[family]):
            expected = model(torch.tensor([ids]), use_cache=False).logits[0]
            whole = plain_generate(model, {}, input_ids=torch.tensor([ids]))
        torch.testing.assert_close(logits[index, : len(ids)], expected, atol=1e-4, rtol=1e-4)
        assert (expected - plain).abs().max() > 0.1
        assert torch.equal(new[index : index + 1], end_padded(whole[:, len(ids) :], new.shape[-1]))


def test_a_model_without_a_gate_says_so() -> None:
    backbone = load_backbone(BackboneConfig(**families.model("gpt2")))
    with pytest.raises(ConfigError, match="no projection 'gate' that can be changed"):
        STATIC_LORA.build(StaticLoraConfig(projections=["gate"]), backbone, StateSpec("empty", {}))
    shapes = {"A.gate": (1, 2, 32), "B.gate": (1, 64, 2)}
    with pytest.raises(ConfigError, match="no projection 'gate' that can be changed"):
        PER_EXAMPLE_LORA.build(PerExampleLoraConfig(), backbone, StateSpec("lowrank", shapes, (0,)))
