"""`static-lora` and `per-example-lora` against models whose weights were edited: W + (α/r)·B A, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_lora import (
    PER_EXAMPLE_LORA,
    PerExampleLoraConfig,
)
from memwrite_specs.testing import (
    FAMILIES,
    Rows,
    end_padded,
    families,
    plain_generate,
    plain_logits,
    query_batches,
    tolerance,
)
from torch import Tensor, nn

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.errors import InputError
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

LAYERS, RANK, ALPHA = (0, 1), 2, 3.0
BEAMS = {"num_beams": 4, "num_return_sequences": 2}
STATIC = {"rank": RANK, "alpha": ALPHA, "projections": ["o", "q", "k", "v"], "layers": [1, 0]}
EMPTY = MemoryState(StateSpec("empty", {}), {})
each_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def pristine(family: str, attention: str) -> Any:
    return load_backbone(BackboneConfig(**families.model(family, attention))).model


@cache
def states(family: str, names: str = "qkvo", seed: int = 0) -> MemoryState:
    """Two memories with random matrices; the rank of "k" is another."""
    draw, shapes = torch.Generator().manual_seed(seed), {}
    for name in names:
        outputs, inputs = families.weight(pristine(family, "sdpa"), 0, name).shape
        rank = RANK + (name == "k")
        shapes[f"A.{name}"] = (len(LAYERS), rank, inputs)
        shapes[f"B.{name}"] = (len(LAYERS), outputs, rank)
    tensors = {
        name: 0.3 * torch.randn(2, *shape, dtype=torch.float64, generator=draw)
        for name, shape in shapes.items()
    }
    return MemoryState(StateSpec("lowrank", shapes, LAYERS, torch.float64), tensors)


def per_example(backbone: dict[str, Any], spec: StateSpec) -> Memory:
    described, params = BackboneConfig(**backbone), {"alpha": ALPHA}
    loaded = load_backbone(described)
    reader = PER_EXAMPLE_LORA.build(PerExampleLoraConfig(**params), loaded, spec)
    part = PartConfig("per-example-lora", params)
    return Memory(loaded, None, reader, Config(described, reader=part)).eval()


@cache
def own_matrices(family: str, attention: str, names: str = "qkvo") -> Memory:
    return per_example(families.model(family, attention), states(family, names).spec)


def static(backbone: dict[str, Any], **changes: Any) -> Memory:
    """Ordinary LoRA that has learnt something."""
    reader = {"name": "static-lora", "params": {**STATIC, **changes}}
    memory = Memory.from_config({"backbone": backbone, "reader": reader})
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for up in memory.reader.B.values():
            up.copy_(torch.randn(up.shape, dtype=torch.float64, generator=draw))
    return memory


@cache
def learnt(family: str, attention: str) -> Memory:
    return static(families.model(family, attention))


# ---- the oracle --------------------------------------------------------------------------------


@contextmanager
def merged(model: nn.Module, matrices: Mapping[str, Tensor], layers: Any) -> Iterator[None]:
    """The plain model with the weights W + (α/r)·B A, until the block is left; matrices have a layer axis first."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in (name for name in "qkvo" if f"A.{name}" in matrices):
        for index, layer in enumerate(layers):
            down, up = matrices[f"A.{name}"][index], matrices[f"B.{name}"][index]
            families.add(model, layer, name, ALPHA / len(down) * up @ down)
    try:
        yield
    finally:
        model.load_state_dict(kept)


def row(state: MemoryState, index: int) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in state.tensors.items()}


def logits(model: Any, ids: list[int]) -> Tensor:
    found: Tensor = model(torch.tensor([ids], dtype=torch.int64), use_cache=False).logits[0]
    return found


# ---- each row its own matrices -----------------------------------------------------------------


@each_family
@settings(max_examples=4, deadline=None)
@given(
    queries=query_batches().filter(lambda drawn: len(drawn[1].ids) == 2),
    attention=st.sampled_from(["eager", "sdpa"]),
    names=st.sampled_from(["qkvo", "k", "qo", "v"]),
)
@torch.no_grad()
def test_every_row_reads_as_a_model_with_its_weights(
    family: str, attention: str, queries: tuple[Rows, Tokens], names: str
) -> None:
    """Any projections, many queries of one row, padded anyhow."""
    memory, model = own_matrices(family, attention, names), pristine(family, attention)
    state, (lists, query) = states(family, names), queries
    found = memory.read(state, query).logits.flatten(0, 1)
    each = query.ids.shape[1]
    for b in range(2):
        with merged(model, row(state, b), LAYERS):
            for index in range(b * each, (b + 1) * each):
                if not lists[index]:
                    continue
                mask, wanted = query.flat().mask[index], logits(model, lists[index])
                torch.testing.assert_close(found[index][mask], wanted, **tolerance(family))


@each_family
@torch.no_grad()
def test_generation_is_that_of_the_merged_models(family: str) -> None:
    """Through beams with each row's own matrices; greedy with learned ones."""
    state, lists, model = states(family), [[1, 2, 3, 4, 5, 6, 7], [8, 9]], pristine(family, "sdpa")
    reader = learnt(family, "sdpa").reader
    weights = dict(reader.named_parameters())
    cases: list[Any] = [
        (own_matrices(family, "sdpa"), state, [row(state, 0), row(state, 1)], LAYERS, BEAMS),
        (learnt(family, "sdpa"), EMPTY, [weights, weights], STATIC["layers"], {}),
    ]
    for memory, held, matrices, layers, options in cases:
        new = memory.generate(held, Tokens.from_rows(lists), max_new_tokens=5, **options)
        for index, ids in enumerate(lists):
            with merged(model, matrices[index], layers):
                whole = plain_generate(model, options, input_ids=torch.tensor([ids]))
            own = new.reshape(2, -1, new.shape[-1])[index]
            assert torch.equal(own, end_padded(whole[:, len(ids) :], new.shape[-1]))


def test_a_state_file_is_read_in_a_fresh_memory(tmp_path: Path) -> None:
    """Also one of a bfloat16 model, whose state stays float32."""
    spec = StateSpec("lowrank", states("phi3").spec.shapes, (2, 0), torch.float32)
    state = MemoryState(spec, {name: t.float() for name, t in states("phi3").tensors.items()})
    memory = per_example({**families.model("phi3"), "dtype": "bfloat16"}, spec)
    memory.save(state, tmp_path / "memory.st")
    fresh, same = Memory.load(tmp_path / "memory.st")
    query = Tokens.from_rows([[1, 2, 3], [4]])
    found = fresh.read(same, query).logits
    assert same["A.q"].dtype == torch.float32
    assert torch.equal(found, memory.read(state, query).logits)
    assert (found - fresh.read(same.map(torch.zeros_like), query).logits).abs().max() > 0.1
    corrections = fresh.reader.condition(same).corrections
    addition = corrections[2](torch.randn(2, 3, 32).bfloat16())["q"]
    assert addition(torch.randn(2, 3, 32).bfloat16()).dtype == torch.float32


def test_another_state_than_it_was_built_for() -> None:
    with pytest.raises(InputError, match="the reader was built for states of shapes"):
        own_matrices("llama", "sdpa").read(states("llama", "qo"), Tokens.from_rows([[1], [2]]))


# ---- the control without memory ----------------------------------------------------------------


@each_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_learned_matrices_are_a_model_with_those_weights(family: str, attention: str) -> None:
    memory, model = learnt(family, attention), pristine(family, attention)
    lists = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11]]
    found = memory.read(EMPTY, Tokens.from_rows(lists)).logits
    with merged(model, dict(memory.reader.named_parameters()), STATIC["layers"]):
        for index, ids in enumerate(lists):
            wanted = logits(model, ids)
            torch.testing.assert_close(found[index, : len(ids)], wanted, **tolerance(family))
            assert (wanted - plain_logits(memory, ids)).abs().max() > 0.1


@each_family
def test_untrained_it_changes_no_bit(family: str) -> None:
    backbone, query = families.model(family), Tokens.from_rows([[1, 2, 3], [4]])
    bare = Memory.from_config({"backbone": backbone})
    untrained = Memory.from_config({"backbone": backbone, "reader": {"name": "static-lora"}})
    assert torch.equal(untrained.read(EMPTY, query).logits, bare.read(EMPTY, query).logits)


def test_a_run_folder_brings_it_back(tmp_path: Path) -> None:
    """Trained on a frozen model, all of its weights learn."""
    memory = static({**families.model("phi3"), "dtype": "float32"}).train()
    tokens = Tokens.from_rows([[1, 2, 3], [4, 5]])
    before = {name: weight.clone() for name, weight in memory.state_dict().items()}
    optimizer = torch.optim.SGD(memory.reader.parameters(), lr=0.1)
    training_loss(memory, Batch(tokens, tokens, tokens.ids)).loss.backward()
    optimizer.step()
    for name, weight in memory.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("model."), name
    memory.eval().save_run(tmp_path)
    again = Memory.from_config(tmp_path)
    found = again.read(again.write(tokens).state, tokens).logits
    assert torch.equal(found, memory.read(EMPTY, tokens).logits)


@pytest.mark.filterwarnings("ignore")
@each_family
def test_checkpointing_changes_no_gradient(family: str) -> None:
    """To each row's matrices and to learned ones."""
    found, query = [], Tokens.from_rows([[1, 2, 3], [4, 5]])
    for checkpointing in (False, True):
        own, all_alike = own_matrices(family, "sdpa"), learnt(family, "sdpa")
        state = states(family).clone()
        held = [tensor.requires_grad_() for tensor in state.tensors.values()]
        parts = []
        for memory, given_state, leaves in (
            (own, state, held),
            (all_alike, EMPTY, list(all_alike.reader.parameters())),
        ):
            memory.train()
            if checkpointing:
                memory.model.gradient_checkpointing_enable()
            loss = memory.read(given_state, query).logits.sin().sum()
            parts += [loss, *torch.autograd.grad(loss, leaves)]
            memory.model.gradient_checkpointing_disable()
            memory.eval()
        found.append(parts)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
        assert other.abs().sum() > 0
