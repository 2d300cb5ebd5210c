"""FastGen: the loop's policies and slots, those of another implementation, and states as large as their fullest head."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from memwrite_kv import naive
from memwrite_kv.candidates import Candidates
from memwrite_kv.fastgen import FastGenConfig, Profile
from memwrite_specs.testing import MODELS, tolerance
from safetensors.torch import load_file

from memwrite import Memory, Tokens
from memwrite.errors import ConfigError, InputError
from memwrite.protocols import LayerActivations
from memwrite.state import MemoryState

DATA = Path(__file__).parent / "data"
DOT = ord(".")
TEXT = [0, 7, 8, 9, DOT, 40, 41, 42, DOT, 43, 44, 45, 46, 47, 48]
ROWS = [TEXT, [10, 11], [11, 12, DOT, 11, 12, 90, 91]]
QUERY = Tokens.from_rows([[70, 71, 72]] * 3)


def build(writer: str = "fastgen", **params: Any) -> Memory:
    return Memory.from_config(
        {
            "backbone": {**MODELS["llama"], "dtype": "float64", "attention": "eager"},
            "writer": {"name": writer, "params": params},
            "reader": {"name": "key-value"},
        }
    )


@torch.no_grad()
def written(memory: Memory, *rows: list[list[int]]) -> MemoryState:
    state = None
    for some in rows:
        state = memory.write(Tokens.from_rows(some), state).state
    assert state is not None
    return state


@torch.no_grad()
def observed(memory: Memory, ids: list[int]) -> list[naive.Seen]:
    found: list[LayerActivations] = []
    embedded = memory.backbone.embed(torch.tensor([ids]))
    memory.backbone.forward(embedded, observe=found.append)
    return [naive.Seen(a.queries[0], a.keys[0], a.values[0], a.scale) for a in found]


def cheapest(heads: list[list[tuple[float, set[int]]]], recovered: float) -> list[set[int]]:
    return [next(kept for share, kept in head if share >= recovered - 1e-9) for head in heads]


@pytest.mark.parametrize("recovered", [0.3, 0.6, 0.95])
def test_equals_the_loop(recovered: float) -> None:
    memory = build(ratio=1.0, recovered=recovered)
    info = memory.backbone.info
    special = {info.bos_id, info.eos_id, *info.end_ids}
    state = written(memory, ROWS)
    for row, ids in enumerate(ROWS):
        marks = [2 if i in special else int(i in b".,:;!?") for i in ids]
        for layer, seen in enumerate(observed(memory, ids)):
            kept_by_head = cheapest(naive.policies(seen, marks, 1, 0.3, 0.3), recovered)
            for head, kept in enumerate(kept_by_head):
                places = state["latent.position"][row, layer, head]
                visible = state["mask"][row] & ~state["bias"][row, layer, head].isneginf()
                assert places[visible].tolist() == sorted(kept)
                for name in ("keys", "values"):
                    own = getattr(seen, name)[head, sorted(kept)]
                    torch.testing.assert_close(state[name][row, layer, head, visible], own)


def test_every_policy_holds_up_to_what_it_recovers() -> None:
    """It is kept to just below that, and the next one just above."""
    seen, marks = observed(build(), TEXT)[0], [2] + [int(i == DOT) for i in TEXT[1:]]
    heads = naive.policies(seen, marks, 1, 0.3, 0.2)
    assert all(a[0] < b[0] for head in heads for a, b in pairwise(head))
    none, everywhere = torch.zeros(1, len(heads), len(TEXT)), torch.ones(1, len(TEXT))
    candidates = Candidates(
        0, seen.keys[None], seen.values[None], everywhere.bool(), none.long(), seen.queries[None],
        seen.scale, None, {"mark": none, "attention": none.double()}, 0,
    )  # fmt: skip
    for share in [share for head in heads for share, _ in head[:4]]:
        for recovered in (share - 1e-6, share + 1e-6):
            profile = Profile(FastGenConfig(recovered=recovered, frequent=0.2))
            _, own = profile.of(candidates, torch.tensor([marks]))
            for head, kept in enumerate(cheapest(heads, recovered)):
                assert own[0, head].nonzero()[:, 0].tolist() == sorted(kept)


def test_policies_of_another_implementation() -> None:
    """That of cold-compress, which has no policy of local tokens here, so that what it keeps in full may be local."""
    others, fast = load_file(DATA / "others.safetensors"), load_file(DATA / "fastgen.safetensors")
    none, everywhere = torch.zeros(1, 2, 20), torch.ones(1, 20, dtype=torch.bool)
    candidates = Candidates(
        0, others["keys"], others["values"], everywhere, torch.arange(20).expand(1, 2, 20),
        others["queries"], 8**-0.5, None, {"mark": none, "attention": none}, 0,
    )  # fmt: skip
    found = set()
    for name in sorted(fast):
        kind, _, share = name.partition(".")
        if kind != "policy":
            continue
        config = FastGenConfig(sinks=0, recovered=float(share))
        _, own = Profile(config).of(candidates, fast["marks"])
        for head, policy in enumerate(fast[name].tolist()):
            found.add(policy)
            kept = fast[f"kept.{share}"][head]
            assert policy == 3 or own[0, head].tolist() == kept.tolist()
    assert found == {0, 1, 2, 3}


def test_a_state_is_as_large_as_its_fullest_head_and_all_attention_is_the_full_context() -> None:
    whole, full = build(ratio=1.0, recovered=1.0), build("full-context")
    with torch.no_grad():
        found = whole.read(written(whole, ROWS), QUERY).logits
        expected = full.read(written(full, ROWS), QUERY).logits
    torch.testing.assert_close(found, expected, **tolerance("llama"))
    state = written(build(ratio=1.0, recovered=0.3), ROWS)
    visible = state["mask"][:, None, None] & ~state["bias"].isneginf()
    assert state["mask"].sum(1).tolist() == visible.sum(-1).amax((1, 2)).tolist()
    assert state["mask"].shape[1] == int(state["mask"].sum(1).max()) < len(TEXT)
    assert not state["keys"].masked_fill(visible[..., None], 0).any()


def test_slots_that_run_out_and_further_writes() -> None:
    """Special tokens and punctuation stay, and what a head has lost it does not get back."""
    memory = build(slots=4, recovered=1.0)
    state = written(memory, ROWS[:1])
    assert {0, 4, 8} <= set.intersection(
        *(set(places.tolist()) for places in state["latent.position"][0].flatten(0, 1))
    )
    grown = build(ratio=1.0, recovered=0.4)
    first, greedy = written(grown, ROWS), build(ratio=1.0, recovered=1.0)
    with torch.no_grad():
        second = greedy.write(Tokens.from_rows([[50, 51, DOT], [60], [61, 62]]), first).state
    for before, after in zip(visible_places(first), visible_places(second), strict=True):
        lengths = [len(ids) for ids in ROWS]
        old = [[p for p in head if p < n] for head, n in zip(after, lengths, strict=True)]
        assert old == before


def visible_places(state: MemoryState) -> list[list[list[int]]]:
    """Return the places of the slots that each head of each layer has, by row."""
    seen = state["mask"][:, None, None] & ~state["bias"].isneginf()
    places = state["latent.position"]
    return [
        [places[row, layer, head][seen[row, layer, head]].tolist() for row in range(len(seen))]
        for layer in range(seen.shape[1])
        for head in range(seen.shape[2])
    ]


def test_a_tokenizer_may_know_little_punctuation() -> None:
    """That of key-value pairs knows a few characters, and refuses others."""
    backbone = {**MODELS["llama"], "tokenizer": "characters"}
    config = {"backbone": backbone, "writer": {"name": "fastgen"}, "reader": {"name": "key-value"}}
    memory = Memory.from_config(config)
    with pytest.raises(InputError):
        memory.backbone.encode(".")
    assert written(memory, [[5, 6, 7], [8]])["mask"].sum(1).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"recovered": 0.0}, "recovered must be above 0"),
        ({"local": 1.5}, "local must be between 0 and 1"),
        ({"queries": 0}, "queries must be at least 1"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**params)
