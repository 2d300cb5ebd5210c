"""The scores of kvpress and the official Attention Matching, on the same tensors; see data/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_kv import matching
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Candidates, Score
from memwrite_kv.compaction import MatchingConfig, ReferenceScore
from memwrite_kv.matching import Reference
from memwrite_kv.scores.accumulated_attention import (
    AccumulatedAttention,
    AccumulatedAttentionConfig,
)
from memwrite_kv.scores.expected_attention import ExpectedAttention, ExpectedAttentionConfig
from memwrite_kv.scores.first_and_last import FirstAndLast, FirstAndLastConfig
from memwrite_kv.scores.key_diversity import KeyDiversity
from memwrite_kv.scores.key_norm import KeyNorm
from memwrite_kv.scores.last_queries import LastQueries, LastQueriesConfig
from memwrite_kv.scores.reconstruction import largest
from memwrite_kv.selection import Chosen, best
from safetensors.torch import load_file

from memwrite import Memory
from memwrite.protocols import LayerActivations

OTHERS = load_file(Path(__file__).parent / "data" / "others.safetensors")
T, SCALE = 20, 8**-0.5


def candidates() -> Candidates:
    keys = OTHERS["keys"]
    attention = torch.zeros(1, 2, T)
    return Candidates(
        0, keys, OTHERS["values"], torch.ones(1, T, dtype=torch.bool), torch.arange(T).expand(1, 2, T),
        OTHERS["queries"], SCALE, None, {"attention": attention, "asked": attention}, 0,
    )  # fmt: skip


def expected() -> Score:
    params: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    config = {
        "backbone": {"type": "llama", "params": params},
        "writer": {"name": "no-memory"},
        "reader": {"name": "no-memory"},
    }
    backbone = Memory.from_config(config).backbone
    return ExpectedAttention(ExpectedAttentionConfig(sinks=2, future=16), backbone)


def h2o() -> Score:
    return AccumulatedAttention(AccumulatedAttentionConfig(value_norm=False))


@pytest.mark.parametrize(
    ("name", "score", "places"),
    [
        ("ObservedAttention", h2o, slice(None)),
        ("ExpectedAttention", expected, slice(2, None)),  # theirs marks the sinks
        ("KeyDiff", lambda: KeyDiversity(BudgetConfig()), slice(None)),
        ("Knorm", lambda: KeyNorm(BudgetConfig()), slice(None)),
    ],
)
def test_scores_of_kvpress(name: str, score: Any, places: slice) -> None:
    found = score()(candidates()).score
    torch.testing.assert_close(found[..., places], OTHERS[name][..., places], atol=1e-5, rtol=1e-4)


def test_snapkv_of_kvpress() -> None:
    """Theirs pools only what stands before the window, so that its last place has other neighbours than ours."""
    score = LastQueries(LastQueriesConfig(window=4, pool=3, recent=4))
    found = score(candidates()).score[..., : T - 5]
    torch.testing.assert_close(found, OTHERS["SnapKV"][..., : T - 5], atol=1e-5, rtol=1e-4)


def test_streaming_llm_of_kvpress() -> None:
    kept = int(OTHERS["StreamingLLM"][0, 0].sum())
    scored = FirstAndLast(FirstAndLastConfig(sinks=2))(candidates())
    chosen = best(
        scored.score, torch.ones(1, T, dtype=torch.bool), torch.tensor([kept]), kept, 2, 0
    )
    assert chosen.index[0, 0].tolist() == OTHERS["StreamingLLM"][0, 0].nonzero()[:, 0].tolist()


def test_kvzip_of_kvpress() -> None:
    queries, keys = OTHERS["KVzip.queries"], OTHERS["KVzip.keys"]
    seen = LayerActivations(0, keys, queries, keys, keys, SCALE)
    real = torch.ones(1, T, dtype=torch.bool)
    found = largest(seen, real, real)
    torch.testing.assert_close(found, OTHERS["KVzip"], atol=1e-5, rtol=1e-4)


def test_attention_matching_of_its_authors() -> None:
    """Theirs computes in float32 and estimates the largest eigenvalue that is its step."""
    queries = OTHERS["AM.queries"].double().reshape(1, 2, -1, 8)
    logits = queries @ OTHERS["keys"].double().mT * SCALE
    reference = Reference(logits, OTHERS["values"].double(), torch.ones(1, 2 * T, dtype=torch.bool))
    score = ReferenceScore(MatchingConfig()).of(reference).score
    all_slots, count = torch.ones(1, T, dtype=torch.bool), torch.tensor([6])
    mine = best(score, all_slots, count, 6, 0, 0)
    assert mine.index[0].tolist() == OTHERS["AM.index"].sort(-1).values.tolist()
    theirs = Chosen(OTHERS["AM.index"][None], torch.ones(1, 6, dtype=torch.bool))
    bias = matching.mass(reference, theirs)
    torch.testing.assert_close(bias[0].float(), OTHERS["AM.beta"], atol=5e-3, rtol=5e-3)
    values = matching.values(reference, theirs, OTHERS["AM.beta"].double()[None])
    torch.testing.assert_close(values[0].float(), OTHERS["AM.values"], atol=2e-3, rtol=2e-3)
