"""Memory.forward: the loss is the one computed by hand, one query at a time."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import Rows
from scatter import (
    ROW,
    ROWS,
    SEEDS,
    Scatter,
    scattering,
    spread,
)
from support import MODELS, described, without_params
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, MemoryState, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.plugins.builtin.readers import PrefixReader
from memwrite.tasks.base import Batch
from memwrite.training.loss import training_loss

IGNORED = -100


def by_hand(
    memory: Memory, state: MemoryState | None, queries: Rows, labels: Rows
) -> tuple[Tensor, int]:
    """Sum and number of the cross-entropies at the labelled tokens, one query at a time, no padding."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, (ids, wanted) in enumerate(zip(queries, labels, strict=True)):
        embeddings = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
        if state is not None:
            embeddings = torch.cat([state["memory"][row][None], embeddings], 1)
        skip = 1 if state is None else 0
        if embeddings.shape[1] < 2:
            continue
        logits = memory.model(inputs_embeds=embeddings, use_cache=False).logits[0, :-1]
        logits = logits[-len(ids) + skip :] if len(ids) > skip else logits[:0]
        asked = torch.tensor(wanted[skip:], dtype=torch.int64)
        total = total + F.cross_entropy(logits, asked, ignore_index=IGNORED, reduction="sum")
        count += int((asked != IGNORED).sum())
    return total, count


def aligned(queries: Tokens, labels: Rows) -> Tensor:
    """Labels at the places of their tokens."""
    found = torch.full_like(queries.ids, IGNORED)
    found[queries.mask] = torch.tensor(
        [label for row in labels for label in row], dtype=torch.int64
    )
    return found


def asking(queries: Rows, seed: int) -> Rows:
    """About two tokens of three, each at its place; 0 asks for all."""
    throw = random.Random(seed)
    return [
        [IGNORED if seed and throw.random() < 0.3 else token for token in row] for row in queries
    ]


def asked_for(labels: Rows) -> bool:
    return any(label != IGNORED for row in labels for label in row)


@pytest.mark.parametrize("family", MODELS)
@settings(max_examples=30)
@given(contexts=ROWS, others=st.lists(ROW, min_size=4, max_size=4), seed=SEEDS)
def test_the_loss_is_that_of_every_labelled_token(
    family: str, contexts: Rows, others: Rows, seed: int
) -> None:
    """By hand: [state; query] one by one. The first token is predicted from the memory; padding and -100
    count for nothing, wherever they stand; the writer's losses are added.
    """
    memory = scattering(family).train()
    queries = others[: len(contexts)]
    labels = asking(queries, seed)
    assume(asked_for(labels) and any(contexts))
    tokens = spread(queries, seed)
    output = training_loss(memory, Batch(spread(contexts, seed), tokens, aligned(tokens, labels)))
    written = memory.write(Tokens.from_rows(contexts))
    total, count = by_hand(memory, written.state, queries, labels)
    energy = written.losses["energy"].mean()
    torch.testing.assert_close(output.losses["target"], total / count, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.losses["energy"], energy, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(output.loss, total / count + energy, atol=1e-5, rtol=1e-5)
    (found,) = torch.autograd.grad(output.loss, memory.writer.matrix)
    (expected,) = torch.autograd.grad(total / count + energy, memory.writer.matrix)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@settings(max_examples=15)
@given(queries=st.lists(ROW.filter(bool), min_size=6, max_size=6), seed=SEEDS)
def test_many_queries_count_as_so_many_rows(queries: Rows, seed: int) -> None:
    memory = scattering().train()
    contexts = Tokens.from_rows([[1, 2, 3], [4]])
    labels = asking(queries, seed)
    assume(asked_for(labels))
    tokens = spread(queries, seed)
    grouped = Batch(
        contexts,
        tokens.map(lambda tensor: tensor.reshape(2, 3, -1)),
        aligned(tokens, labels).reshape(2, 3, -1),
    )
    output = training_loss(memory, grouped)
    assert output.exact.shape == output.labelled.shape == (2, 3)
    assert output.labelled.flatten().tolist() == [asked_for([row]) for row in labels]
    state = memory.write(contexts).state
    repeated = state.rows(torch.tensor([0, 0, 0, 1, 1, 1]))
    total, count = by_hand(memory, repeated, queries, labels)
    torch.testing.assert_close(output.losses["target"], total / count, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("pair", [("no-memory", "no-memory"), ("full-context", "key-value")])
@settings(max_examples=15)
@given(queries=ROWS, seed=SEEDS)
def test_without_a_prefix_the_first_token_is_not_asked_for(
    pair: tuple[str, str], queries: Rows, seed: int
) -> None:
    """No memory gives the language model's own loss, wherever the padding stands."""
    memory, labels = built(*pair), asking(queries, seed)
    assume(asked_for([row[1:] for row in labels]))
    tokens = spread(queries, seed)
    context = Tokens.from_rows([[]] * len(queries))
    output = training_loss(memory, Batch(context, tokens, aligned(tokens, labels)))
    total, count = by_hand(memory, None, queries, labels)
    torch.testing.assert_close(output.loss, total / count, atol=1e-9, rtol=1e-9)


@cache
def built(writer: str, reader: str) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["gpt2"], "dtype": "float64"},
            "writer": {"name": writer},
            "reader": {"name": reader},
        }
    )


def test_no_memory_has_the_plain_models_loss() -> None:
    memory = built("no-memory", "no-memory")
    ids = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    output = training_loss(memory, Batch(Tokens.from_rows([[3], [4]]), tokens, ids))
    expected = memory.model(ids, labels=ids).loss
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0, check_dtype=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MODELS)
def test_training_under_checkpointing_is_training(family: str) -> None:
    """The same loss and the same gradients to writer and backbone."""
    found = []
    for checkpointing in (False, True):
        held = load_backbone(
            BackboneConfig(**{**MODELS[family], "dtype": "float64", "trainable": True})
        )
        config = Config(described(family), PartConfig("scatter"), PartConfig("prefix"))
        memory = Memory(held, Scatter(held), without_params(PrefixReader), config).train()
        if checkpointing:
            memory.model.gradient_checkpointing_enable()
        queries = Tokens.from_rows([[1, 2, 3], [4]])
        labels = queries.ids.where(queries.mask, IGNORED)
        output = training_loss(memory, Batch(Tokens.from_rows([[5, 6], [7]]), queries, labels))
        output.loss.backward()
        weights = [weight.grad for weight in memory.parameters()]
        assert all(weight is not None for weight in weights)
        found.append([output.loss.detach(), *weights])
    for plain, checked in zip(*found, strict=True):
        torch.testing.assert_close(plain, checked, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_graph_is_kept_only_in_training_with_grad_mode_on(training: bool, grad: bool) -> None:
    memory = scattering().train(training)
    with torch.set_grad_enabled(grad):
        written = memory.write(Tokens.from_rows([[1, 2] * 50]))
        assert torch.is_grad_enabled() == grad
    assert written.state["memory"].requires_grad == (training and grad)
    assert written.losses["energy"].requires_grad == (training and grad)
    assert not written.trace["energy"].requires_grad
