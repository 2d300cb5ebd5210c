"""MAC: a bank of what segments became, in no order, and what positions aggregate of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_compress import naive
from memwrite_compress.aggregate import AggregateReader, Block
from memwrite_compress.mac import MacWriter
from memwrite_specs.testing import MODELS, tolerance
from safetensors.torch import load_file
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.plugins import registry
from memwrite.state import MemoryState, StateSpec

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18]]
QUERY = Tokens.from_rows([[20, 21, 22]] * 3)
#: The authors' names of a block's parameters, and ours.
NAMES = {
    "norm1": "norm",
    "norm_context": "bank_norm",
    "norm2": "mlp_norm",
    "attn.to_q": "query",
    "attn.to_k": "key",
    "attn.to_v": "value",
    "attn.to_out.0": "out",
    "mlp.net.0": "up",
    "mlp.net.3": "down",
}


def build(reader: dict[str, Any] | None = None, **params: Any) -> Memory:
    torch.manual_seed(0)
    return Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "dtype": "float64", "attention": "eager"},
            "writer": {
                "name": "mac",
                "params": {"slots": 2, "segment": 3, "init_std": 0.5, **params},
            },
            "reader": {
                "name": "aggregate",
                "params": {"heads": 2, "head_dim": 4, "init_std": 0.5, **(reader or {})},
            },
        }
    )


@torch.no_grad()
def written(memory: Memory, rows: list[list[int]]) -> MemoryState:
    return memory.write(Tokens.from_rows(rows)).state


def cut(ids: list[int]) -> list[list[int]]:
    """Cut a row into as few segments of at most three tokens, as long as one another."""
    width = -(-len(ids) // -(-len(ids) // 3))
    return [ids[start : start + width] for start in range(0, len(ids), width)]


@torch.no_grad()
def test_a_bank_is_the_loops_summaries_by_their_first_number() -> None:
    memory = build(rank=2)
    writer = memory.writer
    assert isinstance(writer, MacWriter)
    state = written(memory, ROWS)
    for row, ids in enumerate(ROWS):
        found = naive.summaries(
            memory.backbone, writer.tokens, writer.lora, cut(ids), recurrent=False, keep=9
        )
        entries = sorted(found.reshape(-1, 2, found.shape[1]), key=lambda entry: float(entry[0, 0]))
        expected = torch.cat(entries)
        mask = state["mask"][row]
        assert mask.tolist() == [True] * len(expected) + [False] * (len(mask) - len(expected))
        torch.testing.assert_close(state["memory"][row, mask], expected, **tolerance("llama"))
        assert not state["memory"][row, ~mask].any()


@torch.no_grad()
def test_what_is_added_is_the_loops() -> None:
    """At every position and layer, beside rows with other banks, and nothing where a bank is empty."""
    memory = build(reader={"layers": [1]})
    reader = memory.reader
    assert isinstance(reader, AggregateReader)
    state = written(memory, [*ROWS, []])
    ((layer, adapter),) = memory.condition(state).corrections.items()  # type: ignore[union-attr]
    hidden = torch.randn(4, 2, memory.backbone.info.hidden_size, dtype=torch.float64)
    added = adapter(hidden)["o"]
    assert layer == 1
    assert isinstance(added, Tensor)
    assert not added[3].any()
    for row in range(3):
        for position in range(2):
            found = hidden[row, position]
            for block in reader.blocks:
                assert isinstance(block, Block)
                found = naive.aggregated(block, found, state["memory"][row, state["mask"][row]])
            expected = reader.maps["1"](found)
            torch.testing.assert_close(added[row, position], expected)


@torch.no_grad()
def test_the_order_of_a_bank_is_of_no_account_and_what_is_in_it_is() -> None:
    memory = build()
    state = written(memory, [ROWS[0]] * 3)
    order = torch.tensor([4, 1, 5, 0, 2, 3])
    shuffled = MemoryState(state.spec, {n: t[:, order] for n, t in state.tensors.items()})
    logits = memory.read(state, QUERY).logits
    torch.testing.assert_close(memory.read(shuffled, QUERY).logits, logits, **tolerance("llama"))
    other = memory.read(written(memory, ROWS), QUERY).logits
    assert (other - logits)[1:].abs().amax((1, 2)).min() > 1e-4


@torch.no_grad()
def test_a_bank_of_rows_that_hold_more_and_less_is_merged_row_by_row() -> None:
    memory = build()
    writer = memory.writer
    assert isinstance(writer, MacWriter)
    first, second = written(memory, ROWS), written(memory, [[30], [], [31, 32, 33, 34]])
    merged = writer.merge(first, second)
    assert merged["mask"].sum(1).tolist() == [8, 2, 8]
    for row in range(3):
        both = torch.cat([s["memory"][row, s["mask"][row]] for s in (first, second)])
        entries = sorted(both.reshape(-1, 2, both.shape[1]), key=lambda entry: float(entry[0, 0]))
        torch.testing.assert_close(merged["memory"][row, merged["mask"][row]], torch.cat(entries))


@torch.no_grad()
def test_blocks_of_the_authors() -> None:
    given = load_file(Path(__file__).parent / "data" / "mac.safetensors")
    found, bank = given["asked"].double(), given["bank"].double()
    for number in range(2):
        block = Block(16, 2, 4, torch.float64)
        weights = {
            f"{own}.{part}": given[f"{number}.{theirs}.{part}"].double()
            for theirs, own in NAMES.items()
            for part in ("weight", "bias")
            if f"{number}.{theirs}.{part}" in given
        }
        block.load_state_dict(weights)
        found = block(found, bank, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(found, given["aggregated"], atol=1e-12, rtol=1e-12)


def test_a_bank_has_a_reader_of_its_own_and_no_vectors_of_another_width() -> None:
    """Where no reader is named, vectors with an order still stand before the query."""
    assert registry().reader_for("mac").name == "aggregate"
    assert registry().reader_for("icae").name == "prefix"
    memory = build()
    wide = StateSpec("bank", {"memory": (2, 7), "mask": (2,)}, dtype=torch.float64, bounded=False)
    with pytest.raises(InputError, match="vectors of 7 numbers, but the model's have"):
        memory.read(wide.zeros(3), QUERY)


@pytest.mark.parametrize("params", [{"heads": 0}, {"layers": [1, 1]}, {"init_std": -1.0}])
def test_wrong_parameters_of_the_reader(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(params))} must"):
        build(reader=params)
