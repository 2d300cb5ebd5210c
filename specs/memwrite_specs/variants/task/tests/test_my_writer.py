"""The examples of my-writer are functions of their index, and say what they should."""

import pytest
from memwrite_my_writer import TASK

from memwrite.backbones.tokenizers import character_tokenizer

TOKENIZER = character_tokenizer()


def test_an_example_depends_on_seed_and_index_alone():
    task = TASK.build(TASK.config(pairs=3), TOKENIZER)
    few, many = task.fresh(2, seed=1), task.fresh(9, seed=1)
    assert [few[i] for i in range(2)] == [many[i] for i in range(2)]
    assert task.fresh(2, seed=2)[0] != few[0]
    assert task.training(2, seed=1)[0] != few[0]


def test_the_first_word_is_the_answer():
    task = TASK.build(TASK.config(pairs=3, length=2), TOKENIZER)
    example = task.evaluation()[0]
    first, *others, rest = TOKENIZER.decode(example.context).split("|")
    assert (len(first), len(others), rest) == (2, 2, "")
    (query,) = example.queries
    assert TOKENIZER.decode(query) == f"?!:{first}!|"


def test_a_word_has_characters():
    with pytest.raises(ValueError, match="length must be at least 1"):
        TASK.config(length=0)
