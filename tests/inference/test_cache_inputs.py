"""A memory handed to transformers' own `generate` answers as it does here."""

from __future__ import annotations

import pytest
import torch
from families import built
from support import MODELS
from transformers import AutoModelForCausalLM

from memwrite import Memory, Tokens
from memwrite.errors import InputError

PAIRS = [("full-context", "key-value"), ("forward", "prefix"), ("no-memory", "no-memory")]
CONTEXTS = [list(range(10, 30)), list(range(40, 53))]


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_transformers_own_generate_gives_the_answer(writer: str, reader: str, family: str) -> None:
    """Also a copy of the model that memwrite has never seen; a cache is used up by one call and a new one is whole."""
    memory = built(family, "sdpa", writer, reader)
    copy = AutoModelForCausalLM.from_config(memory.model.config).to(torch.float64).eval()
    copy.load_state_dict(memory.model.state_dict())
    end = memory.backbone.info.eos_id
    ids = torch.tensor([[5, 6, 7]])
    state = memory.write(Tokens.from_rows(CONTEXTS[:1])).state
    query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = memory.generate(state, query, max_new_tokens=6)
    for model in (memory.model, copy, copy):
        new = model.generate(
            **memory.cache(state, ids), max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=end
        )  # fmt: skip
        assert torch.equal(new[:, ids.shape[1] :], expected)


def test_rows_of_different_lengths_share_a_cache() -> None:
    memory = built("llama", "eager", "full-context", "key-value")
    state = memory.write(Tokens.from_rows(CONTEXTS)).state
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    inputs = memory.cache(state, ids)
    assert inputs["position_ids"].tolist() == [[20, 21, 22], [13, 14, 15]]
    with torch.no_grad():
        logits = memory.model(**inputs).logits
    expected = memory.read(state, Tokens(ids, torch.ones_like(ids, dtype=torch.bool))).logits
    torch.testing.assert_close(logits, expected)
    alone = memory.cache(state)
    assert alone["attention_mask"].sum(1).tolist() == [20, 13]
    assert alone["position_ids"].tolist() == [[20], [13]]
    assert "input_ids" not in alone
    with pytest.raises(InputError, match="2 rows, but 1"):
        memory.cache(state, ids[:1])


@pytest.mark.filterwarnings("ignore:writer 'delta'")
def test_what_a_cache_cannot_carry_is_refused() -> None:
    memory = Memory.from_config(
        {"backbone": MODELS["llama"], "writer": {"name": "delta"}, "reader": {"name": "lora"}}
    )
    state = memory.write("a boat").state
    with pytest.raises(InputError, match=r"corrections .* use Memory\.generate"):
        memory.cache(state)
