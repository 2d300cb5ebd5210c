"""Key-value retrieval: its tokenizer and its format."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwrite.backbones.tokenizers import (
    ALPHABET,
    ByteTokenizer,
    character_tokenizer,
    load_tokenizer,
)
from memwrite.config import part_config
from memwrite.errors import ConfigError, InputError
from memwrite.tasks.base import IGNORED
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask, pairs_of

CODEC = character_tokenizer()


def task(**params: Any) -> KeyValueTask:
    return KeyValueTask(KeyValueConfig(**params), CODEC)


# ---- tokenizer ---------------------------------------------------------------------------------


def test_ids_are_those_of_gradmem() -> None:
    assert CODEC.vocab_size == 70
    assert (CODEC.bos_id, CODEC.eos_id) == (1, 2)
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
    for again in (load_tokenizer(tmp_path), load_tokenizer("characters")):
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
    assert CODEC.eos_id not in example.context


def test_golden_examples() -> None:
    """Published numbers hang on these contexts: they must not change with a version of memwrite."""
    made = task(pairs=3)
    sources = (made.evaluation(), made.training(1, 0), made.fresh(1, 0))
    assert [CODEC.decode(source[0].context) for source in sources] == [
        "!dC:gK!!yO:QP!!0N:aG!|",
        "!Mx:Ac!!tM:tc!!4I:Pz!|",
        "!OQ:Hd!!Xl:pI!!Aa:ct!|",
    ]
    staged = task(pairs=8, curriculum=[2])
    staged.starts.append(5)
    digest = hashlib.sha256()
    for source in (staged.evaluation(), staged.training(10, 3), staged.fresh(10, 4)):
        for index in range(10):
            example = source[index]
            ids = (example.context, example.queries, example.labels)
            digest.update(repr(ids).encode())
    wanted = "20b05cdc54f33a0e55f2c1d2a89181820b4f9ca11bdbb63758272bd8074a2ae6"
    assert digest.hexdigest() == wanted


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


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": 63, "key_length": 1}, "only 62 keys of length 1"),
        ({"value_length": 0}, "value_length must be at least 1"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_config(KeyValueConfig, params, "task.params")


def test_bytes_are_characters_too() -> None:
    assert KeyValueTask(KeyValueConfig(), ByteTokenizer()).encode("a|") == [97, 124]
