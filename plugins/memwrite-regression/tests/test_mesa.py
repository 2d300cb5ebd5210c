"""The Mesa writer: what is learned, what is remembered, what is refused."""

from __future__ import annotations

import pytest
import torch
from memwrite_regression.kind import recall
from torch.testing import assert_close

from memwrite import Memory
from memwrite.errors import InputError
from memwrite.protocols import LayerInput

TEXT = "The boat is called Ava."


def made(**writer: object) -> Memory:
    llama = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    return Memory.from_config(
        {
            "backbone": {"type": "llama", "params": llama, "dtype": "float64"},
            "writer": {"name": "mesa", "params": {"rank": 4, **writer}},
            "reader": {"name": "lora", "params": {"init": "random"}},
        }
    )


def test_it_starts_with_the_ridge_and_the_keep_of_its_config() -> None:
    cell = made(ridge=0.7, least_ridge=0.1, keep_bias=2.0).writer.cell(0)
    assert_close(cell.log_ridge.exp(), torch.full((1, 4), 0.7, dtype=torch.float64))
    hidden = torch.randn(1, 3, 32, dtype=torch.float64)
    expected = torch.tensor(2.0, dtype=torch.float64).sigmoid()
    assert_close(cell(hidden).log_keep.exp(), expected.expand(1, 3, 1))


def test_every_weight_learns() -> None:
    memory = made().train()
    state = memory.write(TEXT).state
    memory.read(state, memory.encode("Who?", raw=True)).logits.square().sum().backward()
    for name, weight in memory.writer.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_exact_reads_and_conjugate_gradients_write_the_same() -> None:
    exact, descended = (made(solver=name).write(TEXT).state for name in ("exact", "cg"))
    for name in exact.tensors:
        assert_close(descended[name], exact[name], atol=1e-10, rtol=1e-10)


def test_without_forgetting_it_holds_what_ridge_would() -> None:
    memory = made(forgetting=False)
    hidden = torch.randn(1, 6, 32, dtype=torch.float64)
    start = memory.writer.init(1).layer(0)
    after = memory.writer.scan(LayerInput(0, hidden), start, write=True).state
    writes = memory.writer.cell(0)(hidden)
    keys = (writes.keys * writes.weight[..., None].sqrt())[0, :, 0]
    assert_close(after["G"][0, 0], keys.mT @ keys, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_what_was_written_long_ago_fades() -> None:
    memory = made(keep_bias=0.0)
    pair, idle = torch.randn(2, 1, 1, 32, dtype=torch.float64)
    written = memory.writer.cell(0)(pair)
    state = memory.writer.init(1).layer(0)
    recalled = []
    for step in (pair, *[idle] * 3, pair):
        state = memory.writer.scan(LayerInput(0, step), state, write=True).state
        recalled.append(float((recall(state, written.keys) * written.values).sum()))
    assert recalled[0] > recalled[1] > recalled[2] > recalled[3]
    assert recalled[4] > recalled[3]


def test_a_text_cannot_be_taken_out_of_it() -> None:
    memory = made()
    with pytest.raises(InputError, match="writer 'mesa' cannot take a text out of a memory"):
        memory.forget(TEXT, memory.write(TEXT).state)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ridge": 0.2}, "least_ridge must be from 0 to below ridge"),
        ({"least_ridge": -1.0}, "least_ridge must be from 0 to below ridge"),
        ({"solver": "lu"}, "solver must be exact or cg, got 'lu'"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"keep_bias": float("inf")}, "keep_bias must be finite"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**params)
