"""The gradient writer against its oracle, torch's own optimiser and finite differences."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_gradient import GradientConfig, naive
from memwrite_gradient.blocks import OverlappingBlocks
from memwrite_gradient.inner_optimizer import Adam, clip
from memwrite_specs.testing import MODELS
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens
from memwrite.config import part_config
from memwrite.errors import ConfigError, DivergenceError

ROWS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


def build(family: str = "gpt2", backbone: Any = None, **params: Any) -> Memory:
    model = {**MODELS[family], "dtype": "float64", "attention": "eager", **(backbone or {})}
    writer = {"slots": 3, "steps": 2, "lr": 0.5, "init_std": 0.2, **params}
    return Memory.from_config(
        {
            "backbone": model,
            "writer": {"name": "gradient", "params": writer},
            "reader": {"name": "prefix"},
        }
    )


def written(memory: Memory, rows: list[list[int]] = ROWS) -> Tensor:
    return memory.write(Tokens.from_rows(rows)).state["memory"]


def with_graph(memory: Memory, rows: list[list[int]] = ROWS, start: Tensor | None = None) -> Tensor:
    """The memory written with grad mode on, from the writer's start or another."""
    state = memory.writer.init(len(rows))
    if start is not None:
        state = MemoryState(state.spec, {"memory": start})
    memory_after: Tensor = memory.writer.write(state, Tokens.from_rows(rows)).state["memory"]
    return memory_after


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("family", "atol"), [("gpt2", 1e-9), ("llama", 1e-5)])
def test_equals_the_oracle(family: str, atol: float, steps: int, clip_norm: float | None) -> None:
    memory = build(family, steps=steps, clip_norm=clip_norm)
    found = written(memory)
    for row, ids in enumerate(ROWS):
        expected = naive.write(
            memory.backbone, memory.writer.fast.slots, ids, steps, 0.5, clip_norm
        )
        torch.testing.assert_close(found[row], expected, atol=atol, rtol=0)


@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize(("family", "atol"), [("gpt2", 1e-9), ("llama", 1e-5)])
def test_windows_equal_the_oracle(family: str, atol: float, window: int) -> None:
    rows = [[*range(3, 21)], *ROWS]
    memory = build(family, window=window)
    found = written(memory, rows)
    assert (found[0] - written(build(family), rows)[0]).abs().max() > 1e-3
    for row, ids in enumerate(rows):
        start = memory.writer.fast.slots
        expected = naive.write(memory.backbone, start, ids, 2, 0.5, window=window)
        torch.testing.assert_close(found[row], expected, atol=atol, rtol=0)


@given(st.integers(1, 40), st.integers(1, 12))
def test_blocks_predict_every_token_once(tokens: int, window: int) -> None:
    """From blocks of one length, each behind what the one before it predicts last."""
    blocks, whole = OverlappingBlocks(tokens, window), torch.arange(2 * tokens).view(2, tokens)
    cut = blocks.cut(whole)
    assert torch.equal(blocks.join(cut), whole)
    assert cut.shape[0] == 2 * blocks.count
    assert (cut.shape[1] <= window + window // 4) or blocks.count == 1


@settings(max_examples=8)
@given(st.data())
def test_neither_padding_nor_neighbours_matter(data: Any) -> None:
    memory = build(optimizer="adam", lr=0.05)
    rows = data.draw(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=3))
    width = 6
    ids = torch.full((len(rows), width), 77)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        spots = sorted(data.draw(st.permutations(range(width)))[: len(row)])
        ids[b, spots], mask[b, spots] = torch.tensor(row, dtype=torch.int64), True
    found = memory.write(Tokens(ids, mask)).state["memory"]
    for b, row in enumerate(rows):
        if row:
            torch.testing.assert_close(found[b], written(memory, [row])[0], atol=1e-9, rtol=0)
        else:
            assert torch.equal(found[b], memory.writer.fast.slots)


def test_nothing_is_changed_in_place_and_the_same_comes_out_twice() -> None:
    memory = build()
    state, context = memory.writer.init(3), Tokens.from_rows(ROWS)
    before = state["memory"].clone(), context.ids.clone()
    once, twice = (memory.writer.write(state, context).state["memory"] for _ in range(2))
    assert torch.equal(once, twice)
    assert torch.equal(state["memory"], before[0])
    assert torch.equal(context.ids, before[1])


@given(st.floats(0.01, 3), st.floats(0.01, 3), st.integers(0, 5))
def test_clipping_bounds_elements_and_each_examples_norm(
    value: float, norm: float, seed: int
) -> None:
    gradient = torch.randn(
        4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    clipped = clip(gradient, value, norm)
    assert clipped.abs().max() <= value
    assert (clipped.flatten(1).norm(dim=1) <= norm).all()
    assert torch.equal(clip(gradient, None, None), gradient)
    assert torch.equal(clip(gradient, None, norm)[:1], clip(gradient[:1], None, norm))
    small = gradient * 1e-3
    assert torch.equal(clip(small, 3.0, 3.0), small)


def test_adam_is_torchs_adam() -> None:
    gradients = torch.randn(6, 2, 3, dtype=torch.float64)
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.95), eps=0)
    ours, position = Adam(), torch.zeros(2, 3, dtype=torch.float64)
    for gradient in gradients:
        weight.grad = gradient.clone()
        theirs.step()
        position = position - 0.1 * ours(gradient)
    torch.testing.assert_close(position, weight.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_second_order_passes_gradcheck_through_write_and_read(optimizer: str) -> None:
    """Finite differences of an outer loss with respect to the start, the step size and the backbone's head."""
    memory = build(
        optimizer=optimizer, order="second", learned_lr="each", lr=0.1, slots=1, clip_norm=0.05
    )
    writer, backbone = memory.writer, memory.backbone
    query = Tokens.from_rows([[1, 2]])

    def outer(start: Tensor, log_lr: Tensor) -> Tensor:
        writer.log_lr.data.copy_(log_lr.detach())
        del writer._parameters["log_lr"]
        writer.log_lr = log_lr
        state = MemoryState(writer.spec, {"memory": start})
        state = writer.write(state, Tokens.from_rows([[5, 6, 7]])).state
        output = memory.read(state, query)
        writer._parameters["log_lr"] = torch.nn.Parameter(log_lr.detach().clone())
        del writer.__dict__["log_lr"]
        return (output.logits.sin().sum() + output.first_logits.cos().sum()) / 10

    start = writer.fast.slots.detach()[None, :, :].clone().requires_grad_()
    log_lr = writer.log_lr.detach().clone().requires_grad_()
    assert backbone.info.double_backward
    assert torch.autograd.gradcheck(outer, (start, log_lr), atol=1e-5, rtol=1e-3, fast_mode=True)


def test_orders_of_the_gradient() -> None:
    """None stops it, first takes gradients as constants, second adds the curvature term."""
    start = torch.randn(3, 3, 32, dtype=torch.float64) * 0.2
    found = {}
    for order in ("none", "first", "second"):
        leaf = start.clone().requires_grad_()
        after = with_graph(build(order=order), start=leaf)
        if order == "none":
            assert not after.requires_grad
            continue
        (found[order],) = torch.autograd.grad(after.square().sum(), leaf)
    after = with_graph(build(order="first"), start=start)
    torch.testing.assert_close(found["first"], 2 * after, atol=1e-12, rtol=0)
    assert (found["second"] - found["first"]).abs().max() > 1e-3


def test_second_order_on_the_last_steps_only() -> None:
    """Two steps of which the last is second order: one first-order step, then one second-order step."""
    start = torch.randn(3, 3, 32, dtype=torch.float64) * 0.2
    leaf = start.clone().requires_grad_()
    after = with_graph(build(second_steps=1), start=leaf)
    (found,) = torch.autograd.grad(after.square().sum(), leaf)
    middle = with_graph(build(steps=1, order="none"), start=start).requires_grad_()
    last = with_graph(build(steps=1, order="second"), start=middle)
    (expected,) = torch.autograd.grad(last.square().sum(), middle)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_training_reaches_start_step_size_and_backbone() -> None:
    memory = build(order="second", learned_lr="one", backbone={"trainable": True})
    memory.train()
    memory.write(Tokens.from_rows(ROWS)).state["memory"].square().sum().backward()
    assert memory.writer.fast.slots.grad.abs().sum() > 0
    assert memory.writer.log_lr.grad.abs() > 0
    assert memory.model.lm_head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("projection", ["none", "per-example"])
@pytest.mark.parametrize("learned", ["one", "each"])
def test_a_learned_step_size_starts_at_the_fixed_one(learned: str, projection: str) -> None:
    found = written(build(learned_lr=learned, projection=projection))
    torch.testing.assert_close(found, written(build(projection=projection)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("projection", ["none", "per-example"])
def test_each_number_has_its_own_step_size(projection: str) -> None:
    memory = build(learned_lr="each", projection=projection, steps=1)
    writer, name = memory.writer, "memory" if projection == "none" else "latent"
    before = writer.init(len(ROWS))[name]
    moved = memory.write(Tokens.from_rows(ROWS)).state[name] - before
    factors = torch.rand_like(writer.log_lr) + 0.5
    writer.log_lr.data += factors.log()
    again = memory.write(Tokens.from_rows(ROWS)).state[name] - before
    torch.testing.assert_close(again, moved * factors, atol=1e-12, rtol=0)


def test_second_order_through_fused_attention_is_refused() -> None:
    memory = build(order="second", backbone={"attention": "sdpa"})
    with pytest.raises(ConfigError, match=r"backbone\.attention=eager"):
        with_graph(memory)
    assert written(memory).isfinite().all()


def test_inference_keeps_no_graph_and_touches_nothing() -> None:
    """no_grad, inference_mode and eval give what grad mode gives; weights, flags and randomness stay."""
    memory = build(backbone={"trainable": True})
    expected = with_graph(memory).detach()
    buffers = {name: tensor.clone() for name, tensor in memory.named_buffers()}
    memory.train()
    random = torch.get_rng_state()
    context = Tokens.from_rows(ROWS)
    with torch.no_grad():
        quiet = memory.write(context).state
    with torch.inference_mode():
        inference = memory.write(Tokens.from_rows(ROWS)).state
        memory.write(Tokens.from_rows(ROWS), inference)
    assert memory.model.training
    memory.eval()
    evaluated = memory.write(context).state
    for state in (quiet, inference, evaluated):
        assert torch.equal(state["memory"], expected)
        assert state["memory"].grad_fn is None
        assert not state["memory"].requires_grad
        assert not state["memory"].is_inference()
    assert memory.read(inference, Tokens.from_rows([[1]] * 3)).logits.isfinite().all()
    assert all(p.grad is None and p.requires_grad for p in memory.parameters())
    assert not memory.model.training
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in memory.named_buffers():
        assert torch.equal(tensor, buffers[name])


CRAM: dict[str, Any] = {
    "slots": 8,
    "steps": 250,
    "optimizer": "adam",
    "lr": 0.1,
    "stop_when_exact": True,
    "settled_weight": 0.1,
}


def crammer(**params: Any) -> Memory:
    wide = {"params": {**MODELS["gpt2"]["params"], "n_embd": 128}, "dtype": "float32"}
    return build(backbone=wide, **{**CRAM, **params})


def test_a_crammed_text_is_reproduced_exactly_and_the_write_stops_early() -> None:
    """Greedy decoding from the state alone gives every row back; each row stops on its own."""
    memory = crammer()
    texts = ["A short text.", "Another one, somewhat longer."]
    done = memory.write(texts)
    new = memory.generate(done.state)
    for row, text in enumerate(texts):
        ids = [*text.encode(), memory.backbone.info.eos_id]
        assert new[row, : len(ids)].tolist() == ids
        alone = memory.write(text)
        assert memory.ask(alone.state) == text
        steps = len(alone.trace["loss"])
        assert 1 < steps < CRAM["steps"]
    assert done.trace["loss"].shape == done.trace["accuracy"].shape == (len(done.trace["loss"]), 2)
    assert (done.trace["loss"][-1] < 0.5 * done.trace["loss"][0]).all()
    assert done.trace["accuracy"][-1].tolist() == [1, 1]


def test_settled_tokens_count_for_less() -> None:
    """One step from a half-crammed state is the gradient of the loss with settled tokens at a quarter."""
    text = "Fourteen wooden boxes."
    start = crammer(steps=25, stop_when_exact=False).write(text).state["memory"]
    memory = crammer(steps=1, settled_weight=0.25, optimizer="sgd", lr=1.0)
    tokens = memory.encode(text)
    leaf = start.clone().requires_grad_()
    output = memory.read(MemoryState(memory.writer.spec, {"memory": leaf}), tokens)
    logits = torch.cat([output.first_logits[:, None], output.logits[:, :-1]], 1)[0]  # type: ignore[index]
    ids = tokens.ids[0]
    own = logits.gather(1, ids[:, None])[:, 0]
    settled = own - logits.scatter(1, ids[:, None], -torch.inf).amax(1) > 0.3
    assert 0 < settled.sum() < len(ids)
    nll = -logits.log_softmax(-1)[range(len(ids)), ids]
    (gradient,) = torch.autograd.grad((nll * torch.where(settled, 0.25, 1.0)).mean(), leaf)
    found = memory.write(tokens, MemoryState(memory.writer.spec, {"memory": start})).state["memory"]
    torch.testing.assert_close(found, start - gradient, atol=1e-5, rtol=0)


def test_an_absurd_step_size_is_named() -> None:
    with pytest.raises(DivergenceError, match=r"step \d+ of 30 .*writer\.params\.lr"):
        written(build(steps=30, lr=1e200))


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 257), min_size=1, max_size=8), min_size=1, max_size=2))
def test_any_tokens_leave_a_finite_state(rows: list[list[int]]) -> None:
    memory = build("llama", lr=0.04, steps=3, backbone={"dtype": "float32"})
    assert written(memory, rows).isfinite().all()


def test_a_context_longer_than_the_positions_is_written_in_chunks() -> None:
    memory = build(steps=1)
    long = [i % 90 for i in range(100)]
    state = memory.write(Tokens.from_rows([long[:61]])).state
    expected = memory.write(Tokens.from_rows([long[61:]]), state).state["memory"]
    assert torch.equal(written(memory, [long]), expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"slots": -1}, "writer.params.slots must be at least 1, got -1"),
        ({"steps": 0}, "writer.params.steps must be at least 1"),
        ({"lr": 0}, "writer.params.lr must be positive"),
        ({"lr": float("nan")}, "writer.params.lr must be positive"),
        ({"clip_norm": -1.0}, "writer.params.clip_norm must be positive"),
        ({"optimizer": "lion"}, "writer.params.optimizer must be sgd or adam, got 'lion'"),
        ({"learned_lr": True}, "writer.params.learned_lr must be none or one or each, got 'True'"),
        ({"order": "third"}, "writer.params.order must be"),
        (
            {"order": "first", "second_steps": 1},
            "writer.params.second_steps goes with order second",
        ),
        ({"settled_weight": 2.0}, "writer.params.settled_weight must be from 0 to 1"),
        ({"init_std": -0.1}, "writer.params.init_std must not be negative"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part_config(GradientConfig, params, "writer.params")
    assert message in str(caught.value)


WILD = {"slots": 2, "steps": 6, "lr": 1e22, "init_std": 0.5}
TEXTS = Tokens.from_rows([[5, 6, 7], [8, 9], [10, 11, 12, 13]])


def wild(**params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["gpt2"], "attention": "eager"},
            "writer": {"name": "gradient", "params": {**WILD, **params}},
            "reader": {"name": "prefix"},
        }
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_divergent_write_stops_where_it_diverged(optimizer: str) -> None:
    """With the step, the rows, and what loss and gradient were before it."""
    memory = wild(optimizer=optimizer, lr=1e38)
    with pytest.raises(DivergenceError) as caught:
        memory.write(TEXTS)
    assert re.search(
        r"diverged at step [12] of 6 in row\(s\) \[.*\]: before it the loss was \d.* norm of its gradient \d",
        str(caught.value),
    )
    assert caught.value.rows


def test_a_write_that_backtracks_goes_on() -> None:
    """Rows that did not diverge are as they would have been."""
    memory = wild(backtrack=True)
    state = memory.write(TEXTS).state["memory"]
    assert state.isfinite().all()
    calm = {"lr": 0.1, "steps": 3}
    plain, careful = (wild(**calm, backtrack=flag).write(TEXTS).state for flag in (False, True))
    assert torch.equal(plain["memory"], careful["memory"])
