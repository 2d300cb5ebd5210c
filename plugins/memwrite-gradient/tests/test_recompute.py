"""Inner steps with a graph of their own, recomputed or compiled, against the graph kept whole."""

from __future__ import annotations

import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_gradient import GradientConfig
from memwrite_specs.backbones import BACKBONES
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

CONTEXT = Tokens.from_rows([[5, 6, 7, 8, 9, 3], [10], [], [11, 12, 13]])
QUERIES = Tokens.from_rows([[7, 8], [10, 4], [9, 9], [12, 13]])


TINY = {"type": BACKBONES["tiny"].type, "params": BACKBONES["tiny"].params}


def build(backbone: dict[str, Any], **params: Any) -> Memory:
    writer = {"slots": 3, "lr": 0.5, "init_std": 0.2, "write_head": True, **params}
    return Memory.from_config(
        {
            "backbone": {**backbone, "dtype": "float64", "attention": "eager", "trainable": True},
            "writer": {"name": "gradient", "params": {**writer, "reconstruction_weight": 0.3}},
            "reader": {"name": "prefix"},
        }
    ).train()


def gradients(memory: Memory, context: Tokens = CONTEXT) -> dict[str, Tensor]:
    """Of a training step's loss with respect to everything that is learned, and the loss."""
    torch.manual_seed(0)
    loss = training_loss(memory, Batch(context, QUERIES, QUERIES.ids)).loss
    named = dict(memory.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    zero = torch.zeros(())
    return {"loss": loss.detach()} | {
        name: zero if gradient is None else gradient
        for name, gradient in zip(named, found, strict=True)
    }


SETTINGS = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 3),
        "second_steps": st.sampled_from([None, 1]),
        "window": st.sampled_from([None, 2]),
        "projection": st.sampled_from(["none", "shared", "per-example"]),
        "control_tokens": st.integers(0, 1),
        "lora_rank": st.sampled_from([0, 2]),
        "learned_lr": st.sampled_from(["none", "one", "each"]),
        "clip_norm": st.sampled_from([None, 0.05]),
        "settled_weight": st.sampled_from([1.0, 0.1]),
        "stop_when_exact": st.booleans(),
    }
)


@given(SETTINGS)
@settings(max_examples=8, deadline=None)
def test_recomputed_steps_have_the_gradients_of_the_whole_graph(params: dict[str, Any]) -> None:
    expected = gradients(build(TINY, **params))
    found = gradients(build(TINY, recompute=True, **params))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-9)
    assert expected["writer.fast.slots"].abs().max() > 0


def test_a_recomputed_step_repeats_its_dropout() -> None:
    dropping = {**MODELS["gpt2"], "params": {**MODELS["gpt2"]["params"], "resid_pdrop": 0.5}}
    whole, recomputed = (build(dropping, steps=2, recompute=flag) for flag in (False, True))
    found = gradients(recomputed)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-9)


class Kept:
    """What a graph holds of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept(steps: int, recompute: bool) -> int:
    """Numbers that the graph of a write keeps for the backward pass, besides the weights."""
    memory = build(TINY, steps=steps, recompute=recompute)
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        alive.add(held := Kept(tensor))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        written = memory.write(CONTEXT)
    weights = {weight.data_ptr() for weight in memory.parameters()}
    tensors = {held.tensor.data_ptr(): held.tensor for held in alive}
    numbers = sum(t.numel() for place, t in tensors.items() if place not in weights)
    assert written.state["memory"].requires_grad
    return numbers


def test_what_is_kept_for_the_backward_pass_is_flat_in_k() -> None:
    first, last = kept(1, True), kept(5, True)
    # Four more steps keep their slots and embeddings, and beyond that nothing.
    assert last - first < 0.1 * kept(1, False)
    assert kept(5, False) > 4 * kept(1, False)


def compare_compiled_with_eager() -> None:
    torch.compile = partial(torch.compile, backend="aot_eager")
    params = {"steps": 1, "decay": True, "learned_lr": "each", "control_tokens": 1, "window": 4}
    memory = build(TINY, compile=True, **params)
    for context in (CONTEXT, CONTEXT.columns(0, 4)):
        expected, compiled = gradients(build(TINY, **params), context), gradients(memory, context)
        for name, gradient in expected.items():
            torch.testing.assert_close(compiled[name], gradient, atol=1e-9, rtol=1e-9)


def test_compiled_steps_have_the_gradients_of_eager_ones() -> None:
    """All but the last stage of compilation, which wants a C++ compiler and a minute; contexts of two lengths.

    In a new interpreter: what a compiler keeps would look to other tests like something a write left behind, and it cannot
    trace code that is instrumented for coverage, which a forked process inherits.
    """
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths}; import test_recompute as t; t.compare_compiled_with_eager()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def test_a_backward_pass_can_be_repeated() -> None:
    memory = build(TINY, recompute=True)
    state = memory.write(CONTEXT).state["memory"].sum()
    first, second = (
        torch.autograd.grad(state, memory.writer.fast.slots, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"recompute": True, "optimizer": "adam"}, "recompute goes with optimizer sgd, not 'adam'"),
        ({"compile": True, "optimizer": "adam"}, "compile goes with optimizer sgd, not 'adam'"),
        ({"compile": True, "lora_rank": 1}, "compile goes without lora_rank"),
    ],
)
def test_what_cannot_have_a_graph_of_its_own(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientConfig(**params)
