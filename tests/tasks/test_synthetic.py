"""What holds of every synthetic task, and what is particular to one."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memwrite.backbones.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    character_tokenizer,
    train_bpe,
    train_words,
)
from memwrite.config import part_config
from memwrite.errors import ConfigError
from memwrite.plugins import registry
from memwrite.tasks.base import IGNORED, Curriculum, Example, Examples
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.tasks.mqar import MqarConfig, MqarTask
from memwrite.tasks.phonebook import FIRST, LAST, NAMES, PhonebookConfig, PhonebookTask
from memwrite.tasks.synthetic import SyntheticTask

CHARACTERS, BYTES = character_tokenizer(), ByteTokenizer()
Params = dict[str, Any]


def builders() -> dict[str, Callable[[Any, Tokenizer], SyntheticTask[Any]]]:
    """The synthetic ones among all registered tasks."""
    return {
        name: plugin.build
        for name, [(plugin, _)] in registry().tasks.entries.items()
        if isinstance(plugin.build, type) and issubclass(plugin.build, SyntheticTask)
    }


# ---- a solver for each of them: the answer in the text of a context ------------------------------


def value_of_the_key(context: str, question: str, params: Params) -> str:
    """The last one."""
    found = re.findall(re.escape(question.removeprefix("?")) + "([^!]*)!", context)
    return str(found[-1])


def token_behind(context: str, question: str, params: Params) -> str:
    return context[1::2][context[::2].index(question)]


def whole_string(context: str, question: str, params: Params) -> str:
    assert question == "?!:"
    return context.removesuffix("|")


def number_of_the_name(context: str, question: str, params: Params) -> str:
    (line,) = (line for line in context.splitlines() if line.startswith(question))
    return line.removeprefix(question)


def item_asked_for(context: str, question: str, params: Params) -> str:
    items, given_ = context.removesuffix("!|").removeprefix("!").split("!!"), question[2:-1]
    step = {"after": 1, "before": -1}.get(params["asked"])
    return items[int(given_) - 1] if step is None else items[items.index(given_) + step]


SOLVERS: dict[str, Callable[[str, str, Params], str]] = {
    "kv-retrieval": value_of_the_key,
    "mqar": token_behind,
    "copying": whole_string,
    "phonebook": number_of_the_name,
    "overwrite": value_of_the_key,
    "correlated-keys": value_of_the_key,
    "order": item_asked_for,
}
LENGTHS = st.integers(1, 3)
OWN: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "kv-retrieval": {"key_length": LENGTHS, "value_length": LENGTHS, "noise": st.integers(0, 3)},
    "overwrite": {"key_length": LENGTHS, "value_length": LENGTHS, "writes": LENGTHS},
    "correlated-keys": {"shared": st.integers(0, 3)},
    "order": {"item_length": LENGTHS, "asked": st.sampled_from(["after", "before", "place"])},
}
FORMATS = {
    "kv-retrieval": ("!dC:0N!!yO:gK!|", "?!yO:gK!|"),
    "mqar": ("k9aG", "aG!|"),
    "copying": ("MX|", "?!:MX!|"),
    "phonebook": ("Amir Frost: 445-5217\nKate Adams: 474-6457\n", "Kate Adams: 474-6457\n"),
    "overwrite": ("!9q:cS!!9q:RG!!zu:kk!!zu:07!|", "?!9q:RG!|"),
    "correlated-keys": ("!q8rp:hM!!q8rf:hx!|", "?!q8rf:hx!|"),
    "order": ("!5b!!k3!!Cw!|", "?!k3:Cw!|"),
}
each_task = pytest.mark.parametrize("name", SOLVERS)


def size(name: str, example: Example, params: Params) -> int:
    """The number of pairs that an example was drawn with."""
    if name == "copying":
        return len(example.context) - 1
    if name == "overwrite":
        assert text(name, example.context).count(":") == len(example.queries) * params["writes"]
    return len(example.queries)


def codec_of(name: str) -> Tokenizer:
    return BYTES if name == "phonebook" else CHARACTERS


def text(name: str, ids: list[int]) -> str:
    return codec_of(name).decode(ids)


def task(name: str, params: Params) -> SyntheticTask[Any]:
    config = part_config(registry().task(name).config, params, "task.params")
    return builders()[name](config, codec_of(name))


def first(examples: Examples, count: int) -> list[Example]:
    return [examples[index] for index in range(count)]


def test_every_synthetic_task_has_a_solver() -> None:
    assert builders().keys() == SOLVERS.keys()


@each_task
@given(data=st.data(), pairs=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_answer_is_in_the_context(name: str, data: Any, pairs: int, seed: int) -> None:
    """A solver that reads the context finds every answer, and the labels are that answer, closed, alone."""
    params = {"pairs": pairs, **data.draw(st.fixed_dictionaries(OWN.get(name, {})))}
    made = task(name, params)
    for example in (made.evaluation()[1], made.training(9, seed)[8], made.fresh(9, seed)[8]):
        context = text(name, example.context)
        assert len({*map(tuple, example.queries)}) == len(example.queries) > 0
        assert size(name, example, params) == pairs
        for query, labels in zip(example.queries, example.labels, strict=True):
            start = next(i for i, label in enumerate(labels) if label != IGNORED)
            assert start > 0
            assert labels == [IGNORED] * start + query[start:]
            question, answer = (text(name, part) for part in (query[:start], query[start:]))
            assert answer == SOLVERS[name](context, question, params) + made.closing


@each_task
@settings(max_examples=12)
@given(seed=st.integers(0, 99), other=st.integers(0, 99), index=st.integers(0, 50))
def test_an_example_is_a_function_of_its_stream_and_index(
    name: str, seed: int, other: int, index: int
) -> None:
    """And no stream has an example of another one."""

    def streams() -> list[Examples]:
        made = task(name, {"examples": 60})
        seeds = sorted({seed, other})
        drawn = [give(60, s) for give in (made.training, made.fresh) for s in seeds]
        return [made.evaluation(), *drawn]

    forward = [(examples[index], examples[index + 1]) for examples in streams()]
    backward = [(examples[index + 1], examples[index]) for examples in reversed(streams())]
    assert forward == [pair[::-1] for pair in reversed(backward)]
    contexts = [tuple(example.context) for pair in forward for example in pair]
    assert len(set(contexts)) == len(contexts)


@each_task
@given(stages=st.lists(st.integers(1, 9), min_size=1, max_size=4), gaps=st.lists(st.integers(0, 3)))
def test_stages_have_their_sizes(name: str, stages: list[int], gaps: list[int]) -> None:
    """From the start of a stage on, in training; elsewhere it is the last one always."""
    params = {"pairs": max(stages), "curriculum": stages, "advance": 0.7, "examples": 2}
    made = task(name, params)
    assert isinstance(made, Curriculum)
    assert (made.stages, made.starts, made.advance) == ([*stages, max(stages)], [0], 0.7)
    params |= {"writes": 2}
    expected = []
    for gap, stage in zip(gaps, made.stages, strict=False):
        expected += [stage] * gap
        made.starts.append(len(expected))
    del made.starts[len(made.stages) :]
    expected += [made.stages[len(made.starts) - 1]] * 2
    examples = made.training(len(expected), 0)
    assert [size(name, example, params) for example in first(examples, len(examples))] == expected
    for held in (made.evaluation(), made.fresh(2, 0)):
        assert [size(name, e, params) for e in first(held, len(held))] == [max(stages)] * 2


@each_task
@given(fewest=st.integers(1, 5), more=st.integers(0, 3), goal=st.integers(0, 3))
def test_contexts_of_training_vary_in_size(name: str, fewest: int, more: int, goal: int) -> None:
    """From the fewest to those of the stage, and each of them; elsewhere all have as many as the last stage."""
    stage = fewest + more
    params = {"pairs": stage + goal, "curriculum": [stage], "fewest": fewest, "writes": 2}
    made = task(name, {key: value for key, value in params.items() if key != "writes"})
    sizes = [size(name, example, params) for example in first(made.training(200, 0), 200)]
    assert set(sizes) == set(range(fewest, stage + 1))
    held = made.evaluation()
    assert {size(name, e, params) for e in first(held, 3)} == {stage + goal}


@each_task
def test_examples_end(name: str) -> None:
    made = task(name, {"examples": 3})
    assert [len(e) for e in (made.training(5, 0), made.evaluation(), made.fresh(4, 1))] == [5, 3, 4]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"example {index} of 3"):
            made.evaluation()[index]


@each_task
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": 0}, "task.params.pairs must be at least 1, got 0"),
        ({"pairs": 4, "curriculum": [2, 8]}, "curriculum must hold .* got 8"),
        ({"curriculum": [0]}, "curriculum"),
        ({"curriculum": [3], "fewest": 4}, "fewest must be from 1 to 3, .* got 4"),
        ({"fewest": 0}, "fewest must be from 1 to 8"),
        ({"advance": 0.0}, "advance"),
        ({"advance": 1.5}, "advance"),
        ({"examples": 1}, "examples must be at least 2"),
        ({"pair": 2}, "did you mean 'pairs'"),
    ],
)
def test_wrong_parameters_of_all(name: str, params: Params, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_config(registry().task(name).config, params, "task.params")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("kv-retrieval", {"noise": -1}, "noise must be at least 0, got -1"),
        ("kv-retrieval", {"segments": 0}, "segments must be at least 1, got 0"),
        ("kv-retrieval", {"segments": 9}, "segments = 9, but there are only 8 pairs"),
        ("kv-retrieval", {"segments": 3, "curriculum": [4, 2]}, "only 2 pairs to share"),
        ("mqar", {"pairs": 32}, "pairs = 32, but there are only 31 keys of one token"),
        ("mqar", {"queries": 9}, "queries must be from 1 to pairs = 8, or null for all, got 9"),
        ("mqar", {"queries": 0}, "queries must be from 1 .* got 0"),
        ("phonebook", {"pairs": 4097}, "only 4096 names"),
        ("overwrite", {"writes": 0}, "writes must be at least 1, got 0"),
        ("overwrite", {"pairs": 63, "key_length": 1}, "only 62 keys of length 1"),
        ("correlated-keys", {"shared": 4}, "below key_length = 4, got 4"),
        ("correlated-keys", {"shared": -1}, "shared must be at least 0"),
        ("correlated-keys", {"pairs": 63}, "only 62 keys that differ in 1 characters"),
        ("correlated-keys", {"pairs": 5, "shared": 2, "letters": 2}, "only 4 keys"),
        ("correlated-keys", {"letters": 63}, "letters must be from 1 to 62, got 63"),
        ("order", {"asked": "befor"}, "asked = 'befor': did you mean 'before'"),
        ("order", {"item_length": 0}, "item_length must be at least 1, got 0"),
        ("order", {"pairs": 62, "item_length": 1}, "only 61 queries"),
    ],
)
def test_wrong_parameters_of_one(name: str, params: Params, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.params.*{message}"):
        part_config(registry().task(name).config, params, "task.params")


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mqar", {"pairs": 31}),
        ("correlated-keys", {"pairs": 62}),
        ("correlated-keys", {"pairs": 9, "shared": 2, "letters": 3}),
        ("order", {"pairs": 61, "item_length": 1}),
        ("order", {"pairs": 62, "item_length": 1, "asked": "place"}),
        ("overwrite", {"pairs": 62, "key_length": 1}),
    ],
)
def test_all_keys_that_there_are(name: str, params: Params) -> None:
    assert len(task(name, params).evaluation()[0].queries) == params["pairs"]


# ---- what is particular to one -------------------------------------------------------------------


def test_the_formats() -> None:
    """Published numbers hang on these texts: they must not change with a version of memwrite."""
    found = {}
    for name in SOLVERS:
        example = task(name, {"pairs": 2}).evaluation()[0]
        found[name] = (text(name, example.context), text(name, example.queries[-1]))
    assert found == FORMATS


@given(pairs=st.integers(1, 9), noise=st.integers(0, 4), segments=st.integers(1, 9))
def test_noise_and_segments(pairs: int, noise: int, segments: int) -> None:
    """The pairs are those without them; each lies within one segment, behind its noise; segments end in `|`."""
    segments = min(segments, pairs)
    plain = task("kv-retrieval", {"pairs": pairs}).evaluation()[0]
    made = task("kv-retrieval", {"pairs": pairs, "noise": noise, "segments": segments})
    example = made.evaluation()[0]
    assert (example.queries, example.labels) == (plain.queries, plain.labels)
    numbers = example.segments or [0] * len(example.context)
    assert (example.segments is None) == (segments == 1)
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(segments))
    parts = [
        text(
            "kv-retrieval",
            [i for i, n in zip(example.context, numbers, strict=True) if n == number],
        )
        for number in range(segments)
    ]
    pattern = rf"([a-zA-Z0-9]{{{noise}}}![^!:]+:[^!:]+!)+\|"
    assert all(re.fullmatch(pattern, part) for part in parts)
    counts = [part.count(":") for part in parts]
    assert max(counts) - min(counts) <= 1
    together = "".join(re.findall("![^!:]+:[^!:]+!", "".join(parts))) + "|"
    assert together == text("kv-retrieval", plain.context)


def test_noise_is_random() -> None:
    made = KeyValueTask(KeyValueConfig(pairs=30, noise=30), CHARACTERS)
    noise = re.split("![^!:]+:[^!:]+!", CHARACTERS.decode(made.evaluation()[0].context))[:-1]
    assert len(set(noise)) == 30
    assert len(set("".join(noise))) == 62


@given(pairs=st.integers(1, 31), queries=st.integers(1, 31))
def test_mqar_asks_for_some(pairs: int, queries: int) -> None:
    """In a small stage for all that there are."""
    queries = min(queries, pairs)
    made = MqarTask(MqarConfig(pairs, queries=queries, curriculum=[1]), CHARACTERS)
    assert len(made.evaluation()[0].queries) == queries
    assert len(made.training(1, 0)[0].queries) == 1


def test_mqar_asks_for_any_place() -> None:
    made = task("mqar", {"pairs": 4, "queries": 1})
    examples = first(made.evaluation(), 50)
    assert {e.context.index(e.queries[0][0]) for e in examples} == {0, 2, 4, 6}


def test_correlated_keys_share_their_beginning() -> None:
    """Another one in each context."""
    made = task("correlated-keys", {"pairs": 9, "key_length": 5, "shared": 3})
    beginnings = set()
    for example in first(made.evaluation(), 20):
        keys = re.findall("!(.{5}):", text("correlated-keys", example.context))
        assert len(set(keys)) == 9
        (beginning,) = {key[:3] for key in keys}
        beginnings.add(beginning)
    assert len(beginnings) == 20


def test_correlated_keys_are_made_of_few_letters() -> None:
    """Other ones in each context."""
    made = task("correlated-keys", {"pairs": 8, "key_length": 2, "shared": 0, "letters": 3})
    letters = set()
    for example in first(made.evaluation(), 20):
        keys = re.findall("!(..):", text("correlated-keys", example.context))
        assert len(set(keys)) == 8
        letters.add(frozenset("".join(keys)))
    assert all(len(few) == 3 for few in letters)
    assert len(letters) > 15


def test_writes_of_different_keys_mix() -> None:
    """In every order: whatever the place of its first write, a key can be the last one written."""
    made = task("overwrite", {"pairs": 2, "writes": 2})
    orders = set()
    for example in first(made.evaluation(), 60):
        keys = re.findall("!(..):", text("overwrite", example.context))
        orders.add(tuple(keys.index(key) for key in keys))
    assert orders == {(0, 0, 2, 2), (0, 1, 0, 1), (0, 1, 1, 0)}


def test_a_phone_book_in_larger_tokens() -> None:
    """Question and answer have the tokens that they have in the context."""
    config = PhonebookConfig(5)
    lines = [
        BYTES.decode(e.context) for e in first(PhonebookTask(config, BYTES).training(50, 0), 50)
    ]
    tokenizer = train_bpe(lines, 500)
    made = PhonebookTask(config, tokenizer)
    for example in first(made.evaluation(), 9):
        assert len(example.context) < 0.8 * len(tokenizer.decode(example.context))
        assert sorted(chain(*example.queries)) == sorted(example.context)


def test_names_are_different_words() -> None:
    assert len(set(FIRST)) == len(FIRST)
    assert len(set(LAST)) == len(LAST)
    assert len(set(NAMES)) == len(NAMES)


def test_tokenizers_that_do_not_fit() -> None:
    words = train_words(NAMES)
    for tokenizer in (CHARACTERS, words):
        with pytest.raises(ConfigError, match=r"lines as they are.*phonebook.*tokenizer=bytes"):
            PhonebookTask(PhonebookConfig(), tokenizer)

    class Doubling(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return 2 * super().encode(text)

    for name in SOLVERS.keys() - {"phonebook"}:
        with pytest.raises(ConfigError, match=rf"2 tokens of 'a'.*{name}.*tokenizer=characters"):
            builders()[name](registry().task(name).config(), Doubling())
        with pytest.raises(ConfigError, match=rf"earlier character's token of 'b'.*{name}"):
            builders()[name](registry().task(name).config(), words)
