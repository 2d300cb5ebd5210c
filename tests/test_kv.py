"""Key-value retrieval: its tokenizer and its format."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwrite.config import part_config
from memwrite.errors import ConfigError, InputError
from memwrite.tasks.base import IGNORED, Curriculum
from memwrite.tasks.kv import KvConfig, KvTask, pairs_of
from memwrite.tokenizer import ALPHABET, ByteCodec, character_codec, load_codec

CODEC = character_codec()


def task(**params: Any) -> KvTask:
    return KvTask(KvConfig(**params), CODEC)


# ---- tokenizer ---------------------------------------------------------------------------------


def test_ids_are_those_of_gradmem() -> None:
    assert CODEC.vocab_size == 70
    assert (CODEC.start, CODEC.end) == (1, 2)
    assert CODEC.encode("azAZ09!?:|") == [4, 29, 30, 55, 56, 65, 66, 67, 68, 69]


@given(st.text(ALPHABET + "!?:|"))
def test_characters_round_trip(text: str) -> None:
    ids = CODEC.encode(text)
    assert len(ids) == len(text)
    assert CODEC.decode([1, *ids, 2]) == text


@pytest.mark.parametrize(
    ("text", "character"), [("a b", "' '"), ("[PAD]", r"'\['"), ("aé\n", "'é'"), ("\n", r"'\\n'")]
)
def test_unknown_characters_are_refused_by_name(text: str, character: str) -> None:
    with pytest.raises(InputError, match=character):
        CODEC.encode(text)


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    CODEC.save(tmp_path)
    for again in (load_codec(tmp_path), load_codec("characters")):
        assert again.encode("!aB:9z!|?") == CODEC.encode("!aB:9z!|?")
        assert again.vocab_size == 70
        with pytest.raises(InputError, match="'ß'"):
            again.encode("aß")


# ---- format ------------------------------------------------------------------------------------


def test_the_format_of_a_hand_made_example() -> None:
    example = task().example([("ab", "c1"), ("Zz", "09")])
    assert CODEC.decode(example.context) == "!ab:c1!!Zz:09!|"
    assert [CODEC.decode(query) for query in example.queries] == ["?!ab:c1!|", "?!Zz:09!|"]
    unasked = [IGNORED] * 5
    assert example.labels == [unasked + CODEC.encode("c1!|"), unasked + CODEC.encode("09!|")]
    assert CODEC.end not in example.context


def test_golden_examples() -> None:
    """Published numbers hang on these contexts: they must not change with a version of memwrite."""
    made = task(pairs=3)
    sources = (made.evaluation(), made.training(1, 0), made.fresh(1, 0))
    assert [CODEC.decode(source[0].context) for source in sources] == [
        "!dC:gK!!yO:QP!!0N:aG!|",
        "!Mx:Ac!!tM:tc!!4I:Pz!|",
        "!OQ:Hd!!Xl:pI!!Aa:ct!|",
    ]


@given(st.integers(0, 99), st.integers(1, 62), st.integers(1, 3), st.integers(1, 3))
def test_keys_differ_and_have_their_lengths(seed: int, pairs: int, key: int, value: int) -> None:
    drawn = pairs_of(random.Random(seed), pairs, key, value)
    assert len({k for k, _ in drawn}) == len(drawn) == pairs
    assert {(len(k), len(v)) for k, v in drawn} == {(key, value)}


def test_values_may_repeat_and_characters_are_uniform() -> None:
    drawn = pairs_of(random.Random(0), 3000, 2, 1)
    counts = Counter(value for _, value in drawn)
    assert set(counts) == set(ALPHABET)
    assert max(counts.values()) < 2 * 3000 / 62


def test_examples_depend_on_seed_index_and_stage_alone() -> None:
    one, again = (task(pairs=4, curriculum=[2, 3]) for _ in range(2))
    forward = [one.training(9, 5)[i] for i in range(9)]
    examples = again.training(9, 5)
    assert forward == [examples[i] for i in reversed(range(9))][::-1]
    assert forward[0] != one.training(9, 6)[0]
    assert {len(example.queries) for example in forward} == {2}
    again.starts.append(3)
    again.starts.append(7)
    assert [len(examples[i].queries) for i in range(9)] == [2] * 3 + [3] * 4 + [4] * 2
    assert [examples[i] for i in range(3)] == forward[:3]


def test_it_is_a_curriculum() -> None:
    made = task(pairs=4, curriculum=[2, 3], advance=0.8)
    assert isinstance(made, Curriculum)
    assert (made.stages, made.starts, made.advance) == ([2, 3, 4], [0], 0.8)


def test_evaluation_is_always_the_full_task_and_apart_from_training() -> None:
    made = task(pairs=4, curriculum=[1], examples=50)
    held = [made.evaluation()[i] for i in range(50)]
    assert {len(example.queries) for example in held} == {4}
    made.starts.append(0)
    assert held == [made.evaluation()[i] for i in range(len(made.evaluation()))]
    contexts = [
        tuple(examples[i].context)
        for examples in (made.evaluation(), made.training(50, 0), made.fresh(50, 0))
        for i in range(50)
    ]
    assert len(set(contexts)) == 150


def test_examples_end() -> None:
    with pytest.raises(IndexError, match="3"):
        task(pairs=2).training(3, 0)[3]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": 0}, "task.params.pairs must be at least 1, got 0"),
        ({"pairs": 63, "key_length": 1}, "only 62 keys of length 1"),
        ({"value_length": 0}, "value_length must be at least 1"),
        ({"pairs": 4, "curriculum": [2, 8]}, "curriculum must hold .* got 8"),
        ({"curriculum": [0]}, "curriculum"),
        ({"advance": 0.0}, "advance"),
        ({"advance": 1.5}, "advance"),
        ({"examples": 1}, "examples must be at least 2"),
        ({"pair": 2}, "did you mean 'pairs'"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_config(KvConfig, params, "task.params")


def test_a_tokenizer_must_tell_characters_apart() -> None:
    class Doubling(ByteCodec):
        def encode(self, text: str) -> list[int]:
            return 2 * super().encode(text)

    with pytest.raises(ConfigError, match=r"2 tokens of 'a'.*tokenizer=characters"):
        KvTask(KvConfig(), Doubling())
    assert KvTask(KvConfig(), ByteCodec()).encode("a|") == [97, 124]
