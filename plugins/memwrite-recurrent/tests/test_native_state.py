"""A state that was written, saved, forked and gone on from is the model's own, as one pass over the whole text has it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_specs.testing import HYBRIDS, families, plain_generate, plain_logits
from torch import Tensor

from memwrite import Memory, MemoryState, Tokens
from memwrite.errors import ConfigError, InputError

each_family = pytest.mark.parametrize("family", HYBRIDS)
#: Recurrent layers keep their states in float32, whatever the dtype of the model.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TEXTS = [[*range(1, 15)], [20, 21, 22], [40]]
QUERIES = [[100, 101, 102], [103], [104, 105]]


@cache
def built(family: str, dtype: str = "float64", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**families.model(family), "dtype": dtype},
            "writer": {"name": "native-state", "params": params},
            "reader": {"name": "recurrent"},
        }
    )


def read(memory: Memory, state: MemoryState, row: int) -> Tensor:
    return memory.read(state.rows(slice(row, row + 1)), Tokens.from_rows([QUERIES[row]])).logits[0]


@each_family
def test_a_read_goes_on_as_if_the_text_were_there(family: str) -> None:
    """In a batch of ragged rows, padded on either side, written at once or in two pieces."""
    memory = built(family)
    query = Tokens.from_rows(QUERIES)
    whole = memory.write(Tokens.from_rows(TEXTS)).state
    first = memory.write(Tokens.from_rows([text[:2] for text in TEXTS])).state
    pieces = memory.write(Tokens.from_rows([text[2:] for text in TEXTS]), first).state
    width = len(TEXTS[0])
    ids = torch.tensor([[0] * (width - len(text)) + text for text in TEXTS])
    mask = torch.arange(width) >= torch.tensor([[width - len(text)] for text in TEXTS])
    left = memory.write(Tokens(ids, mask)).state
    for state in (whole, pieces, left):
        logits = memory.read(state, query).logits
        for row, (text, ids_) in enumerate(zip(TEXTS, QUERIES, strict=True)):
            expected = plain_logits(memory, text + ids_)[len(text) :].double()
            torch.testing.assert_close(logits[row, : len(ids_)].double(), expected, **CLOSE)
    assert whole["next_position"].tolist() == [14, 3, 1]
    alone = memory.write(Tokens.from_rows([TEXTS[1]])).state
    for name in ("conv", "recurrent"):
        if name in alone.tensors:
            torch.testing.assert_close(whole[name][1:2], alone[name], **CLOSE)


@each_family
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_goes_on_likewise(family: str, options: dict[str, Any]) -> None:
    memory = built(family)
    state = memory.write(Tokens.from_rows(TEXTS)).state
    new = memory.generate(state, Tokens.from_rows(QUERIES), max_new_tokens=5, **options)
    rows = new.reshape(len(TEXTS), -1, new.shape[-1])
    for row, (text, ids) in enumerate(zip(TEXTS, QUERIES, strict=True)):
        prompt = torch.tensor([text + ids])
        expected = plain_generate(memory.model, options, input_ids=prompt)[:, prompt.shape[1] :]
        for found, one in zip(rows[row].tolist(), expected.tolist(), strict=True):
            assert found[: len(one)] == one


@each_family
def test_a_plain_cache_of_transformers_goes_on_likewise(family: str) -> None:
    """`Memory.cache` gives `generate` of the bare model all that it needs."""
    memory = built(family)
    state = memory.write(Tokens.from_rows([TEXTS[0]])).state
    ids = torch.tensor([QUERIES[0]])
    new = memory.model.generate(
        **memory.cache(state, ids), do_sample=False, max_new_tokens=5, pad_token_id=257
    )
    expected = memory.generate(state, Tokens.from_rows([QUERIES[0]]), max_new_tokens=5)
    assert new[0, 3:].tolist() == expected[0].tolist()


@each_family
def test_a_saved_state_is_the_same_to_the_last_bit(family: str, tmp_path: Path) -> None:
    memory = built(family)
    state = memory.write(Tokens.from_rows(TEXTS)).state
    memory.save(state, tmp_path / "state.safetensors")
    other, loaded = Memory.load(tmp_path / "state.safetensors")
    assert loaded.spec == state.spec
    for name, tensor in state.tensors.items():
        assert torch.equal(loaded[name], tensor), name
    for row in range(len(TEXTS)):
        assert torch.equal(read(other, loaded, row), read(memory, state, row))


@each_family
def test_forks_do_not_meet(family: str) -> None:
    """Two continuations of one state are each its own, and the state stays as it was."""
    memory = built(family)
    state = memory.write(Tokens.from_rows([TEXTS[0]])).state
    before = state.clone()
    branches = [[60, 61], [70]]
    states = [memory.write(Tokens.from_rows([branch]), state).state for branch in branches]
    memory.read(state, Tokens.from_rows([QUERIES[0]]))
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, before[name]), name
    for branch, forked in zip(branches, states, strict=True):
        text = TEXTS[0] + branch
        expected = plain_logits(memory, text + QUERIES[0])[len(text) :].double()
        torch.testing.assert_close(read(memory, forked, 0).double(), expected, **CLOSE)


@pytest.mark.parametrize("params", [{"attention": "none"}, {"attention": "last", "slots": 3}])
@pytest.mark.parametrize("family", ["qwen3_next", "nemotron_h", "falcon_h1", "mamba2"])
def test_a_bounded_state_is_written_again_and_again(family: str, params: dict[str, Any]) -> None:
    """Beyond the model's positions too; rows and neighbours are what they are alone, and something is remembered."""
    memory = built(family, **params)
    assert memory.writer.spec.bounded
    state = None
    for start in range(0, 240, 48):
        rows = [[(start + i) % 250 for i in range(48)], [(start * 3 + i) % 250 for i in range(7)]]
        state = memory.write(Tokens.from_rows(rows), state).state
    assert state is not None
    assert state.spec == memory.writer.spec
    query = Tokens.from_rows(QUERIES[:2])
    logits = memory.read(state, query).logits
    blank = memory.read(memory.writer.init(2), query).logits
    for row, count in enumerate([3, 1]):
        torch.testing.assert_close(logits[row, :count], read(memory, state, row)[:count], **CLOSE)
        assert not torch.allclose(logits[row, :count], blank[row, :count], atol=0.05)


def test_the_last_slots_are_those_of_the_whole_state() -> None:
    """Keys at other positions, so that distances are the same: the read is that of the same slots where they were."""
    bounded, whole = built("olmo_hybrid", attention="last", slots=4), built("olmo_hybrid")
    tokens = Tokens.from_rows(TEXTS)
    few, all_ = bounded.write(tokens).state, whole.write(tokens).state
    assert few["next_position"].tolist() == few["mask"].sum(1).tolist() == [4, 3, 1]
    mask = all_["mask"].clone()
    mask[0, :10] = False
    kept = MemoryState(all_.spec, {**all_.tensors, "mask": mask})
    for row in range(3):
        torch.testing.assert_close(read(bounded, few, row), read(whole, kept, row), **CLOSE)


def test_what_does_not_fit_is_one_sentence() -> None:
    described = {"writer": {"name": "native-state"}, "reader": {"name": "recurrent"}}
    with pytest.raises(ConfigError, match="has no recurrent layers"):
        Memory.from_config({**described, "backbone": families.model("llama")})
    with pytest.raises(ConfigError, match="give a number of at least 1"):
        built("mamba2", attention="last")
    state = built("mamba2").write(Tokens.from_rows([[1, 2]])).state
    with pytest.raises(InputError, match="of the recurrent layers"):
        built("lfm2").read(state, Tokens.from_rows([[1]]))


@pytest.mark.parametrize("family", ["olmo_hybrid", "mamba2"])
def test_states_of_half_precision_models(family: str) -> None:
    """What recurrent layers hold is in float32, and becomes the model's own again, to the last bit."""
    memory = built(family, dtype="bfloat16")
    state = memory.write(Tokens.from_rows([TEXTS[0]])).state
    dtypes = {name: state[name].dtype for name in ("conv", "recurrent")}
    assert set(dtypes.values()) == {torch.float32}
    ids = memory.backbone.embed(torch.tensor([TEXTS[0]]))
    own = memory.backbone.forward(ids, use_cache=True).key_values
    given = memory.reader.condition(state).key_values
    assert own is not None
    assert own.recurrent is not None
    assert given is not None
    assert given.recurrent is not None
    for layer, held in own.recurrent.items():
        for name, tensor in held.items():
            assert torch.equal(given.recurrent[layer][name].to(tensor.dtype), tensor), name
