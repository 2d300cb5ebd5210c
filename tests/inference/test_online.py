"""Writing while reading, on every family: whole or in pieces, padded or alone, cached or recomputed, in beams."""

from __future__ import annotations

import itertools
import threading
from functools import cache
from typing import Any

import families
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from memwrite_specs.testing import Rows, tolerance
from naive import padded

from memwrite import Memory, Tokens
from memwrite.inference import online
from memwrite.state import MemoryState

each_family = pytest.mark.parametrize("family", FAMILIES)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:writer 'delta'"),
    pytest.mark.filterwarnings("ignore:memory and text are longer"),
]
ROW = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@cache
def built(family: str, attention: str, granularity: str = "token") -> Memory:
    """With gates half open and corrections that matter; never trained."""
    if attention == "sdpa" and family == "gemma2":
        attention = "eager"  # it caps attention scores, which sdpa cannot
    writer = {"rank": 3, "value_width": 2, "heads": 2, "beta_bias": 0.0, "granularity": granularity}
    reader = {"init": "random", "gain": 4.0, "projections": ["q", "k", "v", "o"]}
    return Memory.from_config(
        {
            "backbone": families.model(family, attention),
            "writer": {"name": "delta", "params": writer},
            "reader": {"name": "lora", "params": reader},
        }
    )


def ran(memory: Memory, tokens: Tokens, state: MemoryState, **options: Any) -> Any:
    with torch.no_grad():
        return online.run(memory.backbone, memory.writer, memory.reader, tokens, state, **options)


def logits(memory: Memory, done: online.Online) -> torch.Tensor:
    return memory.backbone.logits(done.run.hidden)


@each_family
@each_attention
def test_pieces_are_the_whole(family: str, attention: str) -> None:
    """Where keys and values continue; single tokens too."""
    memory = built(family, attention)
    whole = ran(memory, Tokens.from_rows([ROW]), memory.writer.init(1))
    expected = logits(memory, whole)
    plain = memory.model(torch.tensor([ROW]), use_cache=False).logits
    assert (expected - plain).abs().max() > 0.1  # the memory matters
    for cuts in ([0, 5, 6, 12], list(range(13))):
        state, past, parts = memory.writer.init(1), None, []
        for start, stop in itertools.pairwise(cuts):
            done = ran(
                memory, Tokens.from_rows([ROW[start:stop]]), state, past=past, use_cache=True
            )
            state, past = done.written.state, done.run.key_values
            parts.append(logits(memory, done))
        torch.testing.assert_close(torch.cat(parts, 1), expected, **tolerance(family))
        torch.testing.assert_close(state["S"], whole.written.state["S"], **tolerance(family))


@each_family
@settings(max_examples=4)
@given(data=st.data(), granularity=st.sampled_from(["token", "sentence"]))
def test_padding_and_neighbours_change_nothing(family: str, data: Any, granularity: str) -> None:
    memory = built(family, "sdpa", granularity)
    drawn: tuple[Rows, Tokens] = data.draw(padded(3, 9))
    lists, tokens = drawn
    numbers = tokens.mask.long().cumsum(1) // 4
    tokens = Tokens(tokens.ids, tokens.mask, numbers)
    written = memory.write(tokens).state
    for row, ids in enumerate(lists):
        alone = Tokens.from_rows([ids])
        own = torch.tensor([[(i + 1) // 4 for i in range(len(ids))]], dtype=torch.int64)
        state = memory.write(Tokens(alone.ids, alone.mask, own)).state
        torch.testing.assert_close(written["S"][row], state["S"][0], **tolerance(family))
        if not ids:
            assert torch.equal(written["S"][row], memory.writer.init(1)["S"][0])


@each_family
@each_attention
def test_a_state_at_rest_is_a_run_that_does_not_write(family: str, attention: str) -> None:
    memory = built(family, attention)
    state = memory.write(Tokens.from_rows([ROW, ROW[::-1]])).state
    query = Tokens.from_rows([[7, 8, 9], [2, 2]])
    done = ran(memory, query, state, write=False)
    assert torch.equal(done.written.state["S"], state["S"])
    found = memory.read(state, query).logits
    expected = logits(memory, done) * query.mask[..., None]
    torch.testing.assert_close(found, expected, **tolerance(family))


@each_family
def test_checkpointed_gradients_are_the_same(family: str) -> None:
    """Layers are run again in the backward pass, and the state they start from must be the old one."""
    memory = Memory.from_config(built(family, "eager").config)
    context, query = Tokens.from_rows([ROW, ROW[:5]]), Tokens.from_rows([[7, 8], [9]])
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            memory.model.gradient_checkpointing_enable()
        memory.train()
        memory.zero_grad()
        written = memory.write(context)
        memory.read(written.state, query).logits.sin().sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in memory.named_parameters() if p.grad is not None}
        )
    assert any(name.startswith("writer") for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


def beam_search(
    memory: Memory, ids: list[int], state: MemoryState, beams: int, new: int
) -> list[int]:
    """Every beam run from the beginning at every step."""
    alive = [(0.0, ids)]
    for _ in range(new):
        candidates = []
        for score, row in alive:
            last = logits(memory, ran(memory, Tokens.from_rows([row]), state))[0, -1]
            last[memory.backbone.info.eos_id] = -torch.inf
            scores = last.log_softmax(-1)
            candidates += [(score + float(s), [*row, i]) for i, s in enumerate(scores)]
        alive = sorted(candidates, reverse=True)[:beams]
    return alive[0][1][len(ids) :]


@each_family
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("beams", [1, 3])
def test_beams_take_their_states_along(family: str, beams: int, cache: str) -> None:
    memory = built(family, "sdpa")
    state = memory.write(Tokens.from_rows([ROW])).state
    options = {"num_beams": beams, "max_new_tokens": 4, "min_new_tokens": 4}
    with torch.no_grad():
        new, done = online.continue_text(
            memory.backbone, memory.writer, memory.reader, torch.tensor([[7, 8, 9]]), state,
            {**options, "cache_implementation": cache},
        )  # fmt: skip
    assert new[0].tolist() == beam_search(memory, [7, 8, 9], state, beams, 4)
    text = Tokens.from_rows([[7, 8, 9, *new[0].tolist()]])
    whole = ran(memory, text, state).written.state
    torch.testing.assert_close(done.written.state["S"], whole["S"], **tolerance(family))


@each_family
def test_threads_share_a_model_and_no_state(family: str) -> None:
    memory = built(family, "sdpa")
    rows = [[3, 1, 4, 1, 5] * 3, [2, 7, 1, 8, 2] * 3]
    alone = [memory.write(Tokens.from_rows([row])).state["S"] for row in rows]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def write(which: int) -> None:
        for _ in range(5):
            found[which].append(memory.write(Tokens.from_rows([rows[which]])).state["S"])

    threads = [threading.Thread(target=write, args=(which,)) for which in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, states in found.items():
        assert all(torch.equal(state, alone[which]) for state in states)


def test_autocast_is_for_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads and writes the state computes in full precision."""
    memory = built("llama", "sdpa")
    seen = []

    def spied(step: Any, state: Any, *, write: bool) -> Any:
        seen.append((step.queries.dtype, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
        return scan(step, state, write=write)

    scan = memory.writer.scan
    monkeypatch.setattr(memory.writer, "scan", spied)
    with torch.autocast("cpu", torch.bfloat16):
        memory.write(Tokens.from_rows([ROW]))
    assert set(seen) == {(torch.float64, torch.float32)}


def test_a_writer_without_a_layer_reader_writes_what_nobody_reads() -> None:
    """The writer's own write is a run without reads, as with corrections of zero."""
    memory = built("gpt2", "sdpa")
    tokens = Tokens.from_rows([ROW])
    alone = memory.writer.write(memory.writer.init(1), tokens).state
    silent = Memory.from_config(memory.config, ())
    with torch.no_grad():
        for parameter in silent.reader.parameters():
            parameter.zero_()
    silent.writer.load_state_dict(memory.writer.state_dict())
    torch.testing.assert_close(silent.write(tokens).state["S"], alone["S"])


def test_what_a_write_tells() -> None:
    """Norm and half-life of every chunk, and a row that reads nothing forgets nothing."""
    memory = built("gpt2", "sdpa")
    written = memory.write(Tokens.from_rows([ROW, []]))
    norm, half = written.trace["norm"], written.trace["half_life"]
    assert norm.shape == half.shape == (1, 2)
    assert norm[0, 0] > 0
    assert norm[0, 1] == 0
    assert 0.5 < half[0, 0] < 3  # gates near a half
    assert half[0, 1] == torch.inf
    long = memory.write(Tokens.from_rows([ROW * 12]))
    assert len(long.trace["norm"]) == 3  # 144 tokens through 64 positions
