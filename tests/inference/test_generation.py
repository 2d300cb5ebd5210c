"""Every generation equals the naive run of transformers alone: one row, no cache, no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import POSITIONS, SLOTS, built, many, memories, padded, prefixed, trainable
from support import FAMILIES, MODELS, each_backbone
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory, MemoryState, Tokens
from memwrite.backbones.generation import RowStreams, TextStream, text_of
from memwrite.errors import ConfigError, InputError

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    {"repetition_penalty": 3.0},
]


def alone(memory: Memory, embeddings: Tensor, end: int, options: dict[str, Any]) -> Tensor:
    """What transformers' own generate gives for embeddings (1, T, D); the model's own end token ends a text, too."""
    new: Tensor = memory.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64),
        eos_token_id=[end, *memory.backbone.info.end_ids],
        pad_token_id=end,
        do_sample=False,
        **options,
    )
    return new


def common_end(memory: Memory, state: MemoryState) -> int:
    """A token that greedy generation does reach, so that rows stop at different lengths."""
    token: int = memory.generate(state, max_new_tokens=3)[0, 2].item()
    return token


@each_backbone
@settings(max_examples=10)
@given(data=st.data(), options=st.sampled_from(OPTIONS[:4]), stops=st.booleans())
def test_generation_behind_a_prefix(
    family: str, attention: str, data: Any, options: dict[str, Any], stops: bool
) -> None:
    """Greedy and beams, ragged and empty queries: the tokens that transformers gives each row alone."""
    memory = prefixed(family, attention)
    lists, query = data.draw(many())
    batch, each, _ = query.ids.shape
    state = memories(batch)
    end = common_end(memory, state) if stops else 257
    options = {**options, "max_new_tokens": 5}
    copies = options.get("num_return_sequences", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.backbone.tokenizer, "eos_id", end)
        new = memory.generate(state, query, **options)
    assert new.shape[:-1] == ((batch, each) if copies == 1 else (batch * each * copies,))
    rows = new.reshape(batch * each, copies, -1)
    for index, ids in enumerate(lists):
        behind = memory.backbone.embed(torch.tensor([ids], dtype=torch.int64))
        embeddings = torch.cat([state["memory"][index // each][None], behind], 1)
        expected = alone(memory, embeddings, end, options)
        missing = new.shape[-1] - expected.shape[-1]
        assert torch.equal(rows[index], F.pad(expected, (0, missing), value=end))


@each_backbone
@settings(max_examples=8)
@given(data=st.data(), options=st.sampled_from(OPTIONS))
def test_generation_behind_the_full_context(
    family: str, attention: str, data: Any, options: dict[str, Any]
) -> None:
    memory = built(family, attention, "full-context", "key-value")
    context, tokens = data.draw(padded(2))
    ids, query = data.draw(padded(2).filter(lambda drawn: all(drawn[0])))
    options = {key: value for key, value in options.items() if key != "repetition_penalty"}
    new = memory.generate(memory.write(tokens).state, query, max_new_tokens=5, **options)
    rows = new.reshape(2, -1, new.shape[-1])
    for row in range(2):
        whole = torch.tensor([context[row] + ids[row]])
        expected = memory.model.generate(
            whole,
            attention_mask=torch.ones_like(whole),
            eos_token_id=257,
            pad_token_id=257,
            do_sample=False,
            max_new_tokens=5,
            **options,
        )[:, whole.shape[1] :]
        missing = new.shape[-1] - expected.shape[-1]
        assert torch.equal(rows[row], F.pad(expected, (0, missing), value=257))


@each_backbone
def test_rows_stop_at_the_end_token(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing follows the first end token but end tokens, and what stands before it is unchanged."""
    memory, state = prefixed(family, attention), memories(3)
    free = memory.generate(state, max_new_tokens=6)
    end = int(free[0, 3])
    monkeypatch.setattr(memory.backbone.tokenizer, "eos_id", end)
    new = memory.generate(state, max_new_tokens=6)
    assert end in new[0].tolist()
    for row, whole in zip(new.tolist(), free.tolist(), strict=True):
        length = whole.index(end) if end in whole else len(row)
        assert row[:length] == whole[: len(row)][:length]
        assert set(row[length:]) <= {end}


@each_backbone
@pytest.mark.parametrize("beams", [1, 3])
def test_an_empty_query_continues_the_memory_itself(
    family: str, attention: str, beams: int
) -> None:
    memory, state = prefixed(family, attention), memories(2)
    options = {"num_beams": beams, "max_new_tokens": 4}
    new = memory.generate(state, **options)
    for row in range(2):
        expected = alone(memory, state["memory"][row : row + 1], 257, options)
        assert new[row].tolist()[: expected.shape[1]] == expected[0].tolist()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_come_in_turn_for_each_query(family: str, beams: int) -> None:
    """n continuations per query, of the query's own memory: certain samples equal greedy search."""
    memory, state = prefixed(family, "sdpa"), memories(2)
    query = Tokens.from_rows([[1, 2], [3]])
    drawn = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4}
    torch.manual_seed(0)
    new = memory.generate(state, query, num_beams=max(beams, 3 if beams > 1 else 1), **drawn)
    assert new.shape == (6, 4)
    assert len({tuple(row) for row in new.tolist()}) > 2
    if beams == 1:
        certain = memory.generate(state, query, top_k=1, **drawn)
        greedy = memory.generate(state, query, max_new_tokens=4)
        assert torch.equal(certain, greedy.repeat_interleave(3, 0))


@pytest.mark.parametrize("wanted", [0, -3])
def test_a_count_of_new_tokens_below_one_is_refused(wanted: int) -> None:
    memory, state = prefixed("gpt2", "sdpa"), memories(1)
    with pytest.raises((InputError, ConfigError), match="max_new_tokens"):
        memory.generate(state, max_new_tokens=wanted)


def test_no_more_tokens_than_positions() -> None:
    """Memory, query and continuation share the model's positions."""
    memory, state = prefixed("gpt2", "sdpa"), memories(1)
    last = memory.generate(state, Tokens.from_rows([[1] * (POSITIONS - SLOTS - 1)]))
    assert last.shape == (1, 1)
    full = Tokens.from_rows([[1] * (POSITIONS - SLOTS)])
    assert memory.read(state, full).logits.shape[1] == POSITIONS - SLOTS
    with pytest.raises(InputError, match="64 positions"):
        memory.generate(state, full)
    with pytest.raises(InputError, match="65 positions"):
        memory.read(state, Tokens.from_rows([[1] * (POSITIONS - SLOTS + 1)]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MODELS)
def test_generation_while_training_with_checkpointing(family: str) -> None:
    """Generation keeps keys and values whatever the model's mode."""
    memory = trainable(family, "sdpa", checkpointing=True)
    query = Tokens.from_rows([[1, 2], [3]])
    new = memory.generate(memories(2), query, max_new_tokens=4)
    assert memory.model.training
    assert torch.equal(new, memory.eval().generate(memories(2), query, max_new_tokens=4))


@each_backbone
def test_every_row_streams_its_own_answer(family: str, attention: str) -> None:
    """Also where rows of several lengths are generated apart, and one has no stream."""
    memory, state = prefixed(family, attention), memories(4)
    query = Tokens.from_rows([[70, 71], [72], [73, 74], [75]])
    new = memory.generate(state, query, max_new_tokens=5)
    decode, ends = memory.backbone.tokenizer.decode, memory.backbone.info.end_ids
    said: list[list[str]] = [[] for _ in range(4)]
    streams = [TextStream(decode, ends, pieces.append) for pieces in said]
    streamer = RowStreams([*streams[:3], None])
    streamed = memory.generate(state, query, max_new_tokens=5, streamer=streamer)
    assert streamed.equal(new)
    answers = [decode(text_of(row, ends)) for row in new.tolist()]
    assert ["".join(pieces) for pieces in said] == [*answers[:3], ""]
    assert len(set(answers)) == 4


@pytest.mark.parametrize(
    ("options", "runs"), [({}, 1), ({"num_beams": 2}, 1), ({"repetition_penalty": 1.5}, 3)]
)
def test_rows_of_several_lengths_are_continued_together(
    options: dict[str, Any], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless an option asks what their tokens were; that each is continued as alone is tested above."""
    memory, state = prefixed("llama", "sdpa"), memories(4)
    rows, done = [], memory.backbone.generate

    def counted(ids: Tensor, **given: Any) -> Tensor:
        rows.append(len(ids))
        return done(ids, **given)

    monkeypatch.setattr(memory.backbone, "generate", counted)
    query = Tokens.from_rows([[70, 71], [72], [73, 74, 75], [76]])
    memory.generate(state, query, max_new_tokens=3, **options)
    assert (len(rows), sum(rows)) == (runs, 4)
