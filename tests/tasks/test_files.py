"""Tasks that are read from files: bAbI, SQuAD, LoCoMo and text in chunks; what is damaged is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    BABI,
    CODEC,
    LOCOMO,
    LONGMEMEVAL,
    MEMORY_AGENT_BENCH,
    PROSE,
    QA,
    SAMPLES,
    SQUAD,
    config,
    made,
)

from memwrite.backbones.tokenizers import load_tokenizer, train_words
from memwrite.errors import ConfigError, InputError
from memwrite.tasks.babi import read_stories
from memwrite.tasks.base import IGNORED, Example, Texts
from memwrite.tasks.questions import QuestionsConfig, QuestionsExample, QuestionsTask


def spelt(example: Example) -> tuple[list[str], list[tuple[str, str]]]:
    """The segments of a context, and each prompt with the answer that its labels want."""
    assert example.segments is not None
    assert example.segments == sorted(example.segments)
    pieces = [
        [i for i, own in zip(example.context, example.segments, strict=True) if own == number]
        for number in range(max(example.segments) + 1)
    ]
    assert [i for piece in pieces for i in piece] == example.context
    assert pieces[-1].pop() == CODEC.eos_id
    asked = []
    for query, labels in zip(example.queries, example.labels, strict=True):
        start = labels.count(IGNORED)
        assert labels == [IGNORED] * start + query[start:]
        assert query[-1] == CODEC.eos_id
        asked.append((CODEC.decode(query[:start]), CODEC.decode(query[start:-1])))
    return [CODEC.decode(piece) for piece in pieces], asked


# ---- what is read ------------------------------------------------------------------------------


def test_babi_asks_where_the_story_asks(tmp_path: Path) -> None:
    """Questions at one place share what is said before it; questions are no part of it."""
    first, second, third, fourth = made("babi", tmp_path, held_out=1).evaluation()
    assert spelt(first) == (
        ["Mary moved to the bathroom.", " John went to the hallway."],
        [("Where is Mary?", " bathroom"), ("Where is John?", " hallway")],
    )
    told, asked = spelt(second)
    assert told[-1] == " Mary got the milk there."
    assert len(told) == 3
    assert asked == [("What is Mary carrying?", " apple,milk")]
    assert spelt(third)[1] == [("What is north of the kitchen?", " office")]
    assert spelt(fourth)[1] == [("Is Lily a frog?", " yes")]
    assert {q.group for e in (first, fourth) for q in e.questions} == {"file"}


def test_babi_can_want_the_supporting_statements_too(tmp_path: Path) -> None:
    plain = made("babi", tmp_path, held_out=1).evaluation()
    found = made("babi", tmp_path, held_out=1, facts=True).evaluation()
    assert [spelt(example)[0] for example in found] == [spelt(example)[0] for example in plain]
    assert [answer for example in found for _, answer in spelt(example)[1]] == [
        " bathroom Mary moved to the bathroom.",
        " hallway John went to the hallway.",
        " apple,milk Mary moved to the bathroom. Mary got the milk there.",
        " office The office is north of the kitchen.",
        " yes Lily is a frog.",
    ]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    plain, other = tmp_path / "a", tmp_path / "b"
    plain.write_text(BABI)
    other.write_bytes(b"\xef\xbb\xbf" + BABI.replace("\n", "\r\n").encode())
    assert str(read_stories(plain)).replace("'a'", "'b'") == str(read_stories(other))


def test_squad_gives_every_right_answer(tmp_path: Path) -> None:
    first, second = made("squad", tmp_path, held_out=1).evaluation()
    told, asked = spelt(first)
    assert told == ["The Normans lived in France.", " They came from Norway."]
    assert asked == [
        ("\nQuestion: Where did they live?\nAnswer:", " France"),
        ("\nQuestion: Who was their king?\nAnswer:", " unanswerable"),
    ]
    assert [question.answers for question in first.questions] == [
        ("France", "in France"),
        ("unanswerable",),
    ]
    assert spelt(second) == (["Rollo led."], [("\nQuestion: Who led?\nAnswer:", " Rollo")])
    first, second = made("squad", tmp_path, held_out=1, impossible=False).evaluation()
    assert len(first.questions) == 1


def test_questions_of_ones_own_share_their_context(tmp_path: Path) -> None:
    first, second = made("qa", tmp_path, held_out=1).evaluation()
    told, asked = spelt(first)
    assert told == ["Ann ran.", " Bob sat."]
    assert asked == [
        ("\nQuestion: Who ran?\nAnswer:", " Ann"),
        ("\nQuestion: Who sat?\nAnswer:", " Bob"),
    ]
    assert [(q.answers, q.group) for q in first.questions] == [
        (("Ann", "she"), "file"),
        (("Bob",), "file"),
    ]
    assert spelt(second) == (["It is late."], [("\nQuestion: How late?\nAnswer:", " 11")])
    assert second.questions[0].group == "times"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 5: not JSON: Expecting property name"),
        ("[" * 100_000, "line 5: not JSON"),
        ("[1]", "line 5: should be an object, is a list"),
        ('{"question": "Who?", "answers": "I"}', "line 5: 'context' is missing"),
        ('{"context": "a", "answers": "I"}', "line 5: 'question' is missing"),
        ('{"context": "a", "question": "Who?"}', "line 5: 'answers' is missing"),
        ('{"context": "a", "question": "", "answers": "I"}', "line 5.question: is empty"),
        ('{"context": "a", "question": "Who?", "answers": []}', "answers: no answer is given"),
        ('{"context": "a", "question": "Who?", "answers": [""]}', r"answers\[0\]: is empty"),
        ('{"context": "a", "question": "Who?", "answers": null}', "answers: should be a string"),
    ],
)
def test_damaged_lines(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        made("qa", tmp_path, f"{QA}{line}\n")
    assert str(tmp_path / "file") in str(error.value)
    with pytest.raises(InputError, match="is empty"):
        made("qa", tmp_path, "\n")


def test_babi_can_be_asked_as_the_other_tasks_are(tmp_path: Path) -> None:
    plain = made("babi", tmp_path, held_out=1).evaluation()
    found = made("babi", tmp_path, held_out=1, prompted=True).evaluation()
    for own, other in zip(plain, found, strict=True):
        assert spelt(other)[0] == spelt(own)[0]
        assert spelt(other)[1] == [
            (f"\nQuestion: {question}\nAnswer:", answer) for question, answer in spelt(own)[1]
        ]


def articles(titles: list[str]) -> str:
    """A SQuAD file whose articles are of one paragraph and one question; the answer is the title."""
    return json.dumps(
        {
            "data": [
                {
                    "title": title,
                    "paragraphs": [
                        {
                            "context": f"It is {title}.",
                            "qas": [{"question": "What?", "answers": [{"text": title}]}],
                        }
                    ],
                }
                for title in titles
            ]
        }
    )


def test_squad_can_hold_out_articles_by_their_titles(tmp_path: Path) -> None:
    """Of every file, so that what two files share is not trained on; and nothing else."""
    (tmp_path / "more").write_text(articles(["D", "A"]))
    text, files = articles(["A", "B", "C", "B"]), ["file", "more"]
    found = config("squad", tmp_path, text, files=files, articles=["B", "D"]).passages()
    assert [[p.questions[0].answers[0] for p in part] for part in found] == [
        ["A", "C", "A"],
        ["B", "B", "D"],
    ]
    whole = config("squad", tmp_path, text, files=files, articles=["B"], held_out=1.0).passages()
    assert [len(part) for part in whole] == [0, 6]
    with pytest.raises(ConfigError, match="no file has an article 'E'"):
        made("squad", tmp_path, text, files=files, articles=["E", "A"])


def test_locomo_shares_sessions_by_evidence(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 6 questions"):
        found = made("locomo", tmp_path, held_out=1).evaluation()
    contexts = [spelt(example) for example in found]
    one = ["1:56 pm on 8 May, 2023", " Ann: I ran.", " Bob: [shares a photo of a dog]"]
    two = ["9:00 am on 1 June, 2023", " Bob: I moved."]
    assert [told for told, _ in contexts] == [one, two, [*one, f" {two[0]}", two[1]]]
    answers = [[answer for _, answer in asked] for _, asked in contexts]
    assert answers == [
        [" Ann", " 2023", " Not mentioned in the conversation"],
        [" Bob"],
        [" ran, moved"],
    ]
    groups = [[question.group for question in example.questions] for example in found]
    assert groups == [["single-hop", "temporal", "adversarial"], ["open-domain"], ["multi-hop"]]


def test_locomo_as_a_whole(tmp_path: Path) -> None:
    """All questions of a conversation on all of its sessions, some at a time."""
    task = made("locomo", tmp_path, held_out=1, sessions="all", adversarial=False, queries=2)
    found = task.evaluation()
    assert [len(example.queries) for example in found] == [2, 2, 1]
    assert len({tuple(example.context) for example in found}) == 1


def test_longmemeval_tells_sessions_by_date(tmp_path: Path) -> None:
    first, second = made("longmemeval", tmp_path, held_out=1).evaluation()
    rain = ["2023/05/21 (Sun) 08:00", " user: It rains."]
    bees = ["2023/05/20 (Sat) 02:21", " user: I keep 12 bees.", " assistant: Nice."]
    assert spelt(first) == (
        [*bees, f" {rain[0]}", rain[1]],
        [("\nCurrent date: 2023/06/01 (Thu) 10:00\nQuestion: How many bees?\nAnswer:", " 12")],
    )
    assert spelt(second)[0] == rain
    assert [e.questions[0].group for e in (first, second)] == ["single-session-user", "abstention"]


def test_memory_agent_bench_puts_questions_as_their_source_wants(tmp_path: Path) -> None:
    facts, labels, events = made("memory-agent-bench", tmp_path, held_out=1).evaluation()
    told, asked = spelt(facts)
    assert "".join(told) == MEMORY_AGENT_BENCH[0]["context"]
    rule = "\nWhere facts disagree, the one with the largest number is right."
    assert asked == [
        (f"{rule}\nQuestion: Who is the king?\nAnswer:", " Bob"),
        (f"{rule}\nQuestion: Who was not?\nAnswer:", " Ann"),
    ]
    assert facts.questions[0].answers == ("Bob", "King Bob")
    assert spelt(labels)[1] == [("\nIt snows.\nlabel:", " 3")]
    assert events.questions[0].answers == ("Bob sat.", "He sat.")
    groups = [example.questions[0].group for example in (facts, labels, events)]
    assert groups == ["factconsolidation_sh_6k", "icl_weather", "eventqa_full"]


def test_memory_agent_bench_of_some_sources(tmp_path: Path) -> None:
    whole = json.dumps(MEMORY_AGENT_BENCH)
    some = {"held_out": 1, "sources": ["icl_", "eventqa_full"]}
    assert len(made("memory-agent-bench", tmp_path, whole, **some).evaluation()) == 2
    with pytest.warns(UserWarning, match="1 of 4 contexts"):
        assert len(made("memory-agent-bench", tmp_path, whole, held_out=1).evaluation()) == 3
    with pytest.raises(
        InputError, match="none of the sources that are wanted, only eventqa_full, f"
    ):
        made("memory-agent-bench", tmp_path, sources=["ruler"])


def test_rows_are_the_same_as_json_lines_and_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [
        {**row, "answers": [[*map(str, a)] for a in row["answers"]]}
        for row in MEMORY_AGENT_BENCH[1:3]
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    listed = made("memory-agent-bench", tmp_path, json.dumps(rows), held_out=1).evaluation()
    for name in ("r.jsonl", "r.parquet"):
        again = made("memory-agent-bench", tmp_path, "", held_out=1, files=[name]).evaluation()
        assert [*again] == [*listed]
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"r\.parquet' is no parquet file"):
        made("memory-agent-bench", tmp_path, "", files=["r.parquet"])
    with pytest.raises(ConfigError, match=r"gone\.parquet' cannot be read: No such file"):
        made("memory-agent-bench", tmp_path, "", files=["gone.parquet"])


# ---- what is trained on, and what is held out --------------------------------------------------


def story(number: int) -> str:
    return f"1 The key is {number}.\n2 What is the key?\t{number}\t1\n"


STORIES = "".join(story(number) for number in range(40))


def test_every_epoch_has_every_passage_in_an_order_of_its_own(tmp_path: Path) -> None:
    task = made("babi", tmp_path, STORIES, held_out=0.25)
    examples = task.training(90, seed=3)
    answers = [spelt(examples[i])[1][0][1] for i in range(90)]
    trained = {f" {number}" for number in range(30)}
    assert set(answers[:30]) == set(answers[30:60]) == set(answers[60:]) == trained
    assert answers[:30] != answers[30:60]
    assert examples[7] == task.training(8, seed=3)[7]
    assert [examples[i] for i in range(30)] != [task.training(30, seed=4)[i] for i in range(30)]
    held = {f" {number}" for number in range(30, 40)}
    assert {spelt(example)[1][0][1] for example in task.evaluation()} == held
    fresh = task.fresh(25, seed=0)
    assert {spelt(fresh[i])[1][0][1] for i in range(25)} == held
    with pytest.raises(IndexError):
        fresh[25]


def test_buckets_are_of_like_length_and_leave_out_no_more_than_they_must(tmp_path: Path) -> None:
    told = "".join(
        "".join(f"{i} Word {i}.\n" for i in range(1, 1 + length))
        + f"{length + 1} Who?\t{length}\t1\n"
        for length in range(1, 12)
    )
    examples = made("babi", tmp_path, told, held_out=0, bucket=3).training(27, seed=0)
    rounds = [[len(examples[i].context) for i in range(start, start + 9)] for start in (0, 9, 18)]
    for lengths in rounds:
        assert len(set(lengths)) == 9
        buckets = [sorted(lengths[i : i + 3]) for i in (0, 3, 6)]
        assert [n for bucket in sorted(buckets) for n in bucket] == sorted(lengths)
    assert any(lengths != sorted(lengths) for lengths in rounds)
    assert len({n for lengths in rounds for n in lengths}) > 9


@pytest.mark.parametrize(("share", "held"), [(0, 0), (0.01, 1), (0.1, 4), (0.29, 12), (1, 40)])
def test_the_share_that_is_held_out(tmp_path: Path, share: float, held: int) -> None:
    task = made("babi", tmp_path, STORIES, held_out=share)
    assert len(task.evaluation()) == held
    if held == 40:
        with pytest.raises(InputError, match="held_out"):
            task.training(1, 0)
    if held == 0:
        with pytest.raises(InputError, match="held_out"):
            task.fresh(1, 0)


def test_questions_of_a_story_are_never_divided(tmp_path: Path) -> None:
    task = made("babi", tmp_path, BABI, held_out=0.7)
    trained = {spelt(task.training(2, 0)[i])[0][0] for i in range(2)}
    assert trained == {"Mary moved to the bathroom."}


def test_few_of_many_questions_are_asked_at_once(tmp_path: Path) -> None:
    """In training they are drawn, in evaluation all come."""
    text = "1 A is b.\n" + "".join(f"{i} Who is {i}?\tb{i}\t1\n" for i in range(2, 12))
    task = made("babi", tmp_path, text + STORIES, held_out=0, queries=3)
    drawn = [task.training(82, 0)[i] for i in range(82)]
    many = [{q.prompt for q in e.questions} for e in drawn if len(e.questions) > 1]
    assert [len(asked) for asked in many] == [3, 3]
    assert many[0] != many[1]
    task = made("babi", tmp_path, text, held_out=1, queries=3)
    found = [question.prompt for example in task.evaluation() for question in example.questions]
    assert found == [f"Who is {i}?" for i in range(2, 12)]


def test_long_contexts_are_left_out_aloud(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 4 contexts are longer than task.params.tokens = 60"):
        task = made("babi", tmp_path, held_out=1, tokens=60)
    assert [len(example.queries) for example in task.evaluation()] == [2, 1, 1]


# ---- text in chunks ----------------------------------------------------------------------------


def test_reconstruction_asks_for_the_chunk_itself(tmp_path: Path) -> None:
    task = made("reconstruction", tmp_path, PROSE, length=20, held_out=0.2)
    for example in [*task.evaluation(), task.training(3, 0)[2], task.fresh(3, 0)[1]]:
        assert len(example.context) == 21
        assert example.context[-1] == CODEC.eos_id
        assert example.queries == example.labels == [example.context]
        assert example.segments[0] == 0


def test_continuation_asks_for_what_follows(tmp_path: Path) -> None:
    task = made("continuation", tmp_path, PROSE, context=24, length=10, held_out=0.2)
    held = task.evaluation()
    stream = [i for e in held for i in [*e.context[:-1], *e.queries[0]]]
    said = "".join(
        f"{chr(0)}The sun is up. It is day {number} of many.{chr(1)}" for number in range(24, 30)
    ).encode()
    marks = {0: CODEC.bos_id, 1: CODEC.eos_id}
    assert stream == [marks.get(i, i) for i in said][: len(stream)]
    assert len(said) - len(stream) < 34
    for example in held:
        assert example.labels == example.queries
        assert (len(example.context), len(example.queries[0])) == (25, 10)


def test_segments_of_a_chunk_are_its_sentences(tmp_path: Path) -> None:
    example = made("reconstruction", tmp_path, PROSE, length=40, held_out=1).evaluation()[0]
    ends = [i for i in range(1, 41) if example.segments[i] != example.segments[i - 1]]
    texts = [
        CODEC.decode(example.context[a:b]) for a, b in zip([0, *ends], [*ends, 41], strict=True)
    ]
    assert texts == ["The sun is up.", " It is day 0 of many.", "Th"]


@pytest.mark.parametrize("params", [{"length": 16}, {"length": 8, "context": 8}])
def test_chunks_of_held_out_text_are_never_trained_on(
    tmp_path: Path, params: dict[str, int]
) -> None:
    name = "continuation" if "context" in params else "reconstruction"
    text = "\n\n".join(["a" * 90] * 9 + ["z" * 90])
    task = made(name, tmp_path, text, held_out=0.1, **params)
    trained = [task.training(60, 0)[k] for k in range(60)]
    assert ord("z") not in {i for e in trained for i in [*e.context, *e.queries[0]]}
    assert {i for e in task.evaluation() for i in e.queries[0]} >= {ord("z")}
    with pytest.raises(InputError, match="less than one window of 100"):
        made(
            name,
            tmp_path,
            text,
            held_out=0.1,
            **{**params, "length": 100 - params.get("context", 0)},
        ).fresh(1, 0)


# ---- what is refused ---------------------------------------------------------------------------

DAMAGED = {
    "no number": ("Mary moved.\n", "line 1: should be a number"),
    "not from 1": ("2 Mary moved.\n", "line 1: is numbered 2 where 1 should come"),
    "a gap": ("1 Mary moved.\n3 John ran.\n", "line 2: is numbered 3 where 2"),
    "nothing said": ("1 \n", "line 1: should be a number, a space and a text"),
    "two fields": ("1 A.\n2 Where?\tthere\n", "line 2: a question has 3 fields"),
    "four fields": ("1 A.\n2 Where?\tthere\t1\tx\n", "line 2: .* this one has 4"),
    "no answer": ("1 A.\n2 Where?\t\t1\n", "line 2: the answer is empty"),
    "no question": ("1 A.\n2  \tthere\t1\n", "line 2: the question is empty"),
    "no facts": ("1 A.\n2 Where?\tthere\tx\n", "line 2: the supporting lines should be numbers"),
    "later fact": ("1 A.\n2 Where?\tthere\t3\n", "line 2: the supporting line 3"),
    "cut off": (BABI[: BABI.rindex("2 Is")], "line 9: the story ends without a question"),
    "cut in the middle": ("1 A.\n1 B.\n2 C?\td\t1\n", "line 1: the story ends without"),
    "empty": ("\n\n", "holds no story"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_babi_files(tmp_path: Path, kind: str) -> None:
    text, reason = DAMAGED[kind]
    with pytest.raises(InputError, match=reason) as error:
        made("babi", tmp_path, text)
    assert str(tmp_path / "file") in str(error.value)


def changed(sample: Any, place: str, value: Any) -> str:
    """A sample as JSON with the value at a place, as in "a[0].b", replaced; None takes it out."""
    data = json.loads(json.dumps(sample))
    *way, last = [
        int(k) if k.isdigit() else k
        for k in place.replace("[", ".").replace("]", "").strip(".").split(".")
    ]
    part = data
    for key in way:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return json.dumps(data)


QAS = "data[0].paragraphs[0].qas"
ASKED = "[0].qa"
MISTAKES = [
    ("squad", "data", None, "'data' is missing"),
    ("squad", "data", {}, "data: should be a list, is an object"),
    ("squad", "data", [], "holds no question"),
    ("squad", "data[0].paragraphs[1].context", None, r"data\[0\].paragraphs\[1\]: 'context' is missing"),
    ("squad", "data[0].paragraphs[0].context", " ", r"paragraphs\[0\].context: is empty"),
    ("squad", f"{QAS}[0].question", 7, r"qas\[0\].question: should be a string, is a number"),
    ("squad", f"{QAS}[0].answers", [], r"qas\[0\].answers: no answer is given"),
    ("squad", f"{QAS}[0].answers[1].text", "", r"answers\[1\].text: is empty"),
    ("squad", f"{QAS}[1].is_impossible", "no", r"is_impossible: should be true or false"),
    ("squad", f"{QAS}[1].is_impossible", False, r"qas\[1\].answers: no answer is given"),
    ("squad", f"{QAS}[0].question", "\ud800", r"question: is not valid Unicode"),
    ("locomo", "[0].conversation", None, r"\[0\]: 'conversation' is missing"),
    ("locomo", "[0].conversation", {}, r"\[0\].conversation: holds no session"),
    ("locomo", "[0].conversation.session_2_date_time", None, "'session_2_date_time' is missing"),
    ("locomo", "[0].conversation.session_1[1].speaker", 3, r"session_1\[1\].speaker: should be a string"),
    ("locomo", f"{ASKED}[0].category", 6, r"qa\[0\].category: should be a number from 1 to 5, is 6"),
    ("locomo", f"{ASKED}[0].answer", None, r"qa\[0\]: 'answer' is missing"),
    ("locomo", f"{ASKED}[0].answer", [1], r"qa\[0\].answer: should be a string, is a list"),
    ("longmemeval", "[0].question", None, r"\[0\]: 'question' is missing"),
    ("longmemeval", "[0].haystack_dates[0]", "", r"haystack_dates\[0\]: is empty"),
    ("longmemeval", "[1].haystack_dates", [], r"\[1\].haystack_sessions: 1 sessions of 0 dates"),
    ("longmemeval", "[0].haystack_sessions[0][0].role", None, r"sessions\[0\]\[0\]: 'role' is missing"),
    ("memory-agent-bench", "[1].metadata", None, r"\[1\]: 'metadata' is missing"),
    ("memory-agent-bench", "[0].answers", ["Bob"], r"\[0\].answers: 1 answers of 2 questions"),
    ("memory-agent-bench", "[0].answers[0]", [], r"\[0\].answers: 2 answers of 2 questions"),
    ("memory-agent-bench", "[2].answers", [], r"\[2\].answers: 0 answers of 1 questions"),
]  # fmt: skip
JSON_SAMPLES = {
    "squad": SQUAD,
    "locomo": LOCOMO,
    "longmemeval": LONGMEMEVAL,
    "memory-agent-bench": MEMORY_AGENT_BENCH[:3],
}


@pytest.mark.parametrize(("name", "place", "value", "reason"), MISTAKES)
def test_damaged_json_files(tmp_path: Path, name: str, place: str, value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        made(name, tmp_path, changed(JSON_SAMPLES[name], place, value))
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize("name", JSON_SAMPLES)
def test_what_is_no_json(tmp_path: Path, name: str) -> None:
    for text, reason in (
        ('{"data":\n [1,, 2]}', "line 2, column 5: not JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" + "9" * 5000 + "]", "cannot be read as JSON"),
        ("3", "should be .*, is a number"),
        ("[]", {"squad": "should be an object", "locomo": "no conversation"}.get(name, "is empty")),
    ):
        with pytest.raises(InputError, match=reason):
            made(name, tmp_path, text)


@pytest.mark.parametrize("name", SAMPLES)
def test_missing_and_binary_files(tmp_path: Path, name: str) -> None:
    settings = config(name, tmp_path)
    (tmp_path / "file").write_bytes(b"1 ok\n2 \xff\n")
    with pytest.raises(InputError, match=r"file', line 2: not UTF-8 text \(byte 7\)"):
        QuestionsTask(settings, CODEC)
    (tmp_path / "file").unlink()
    with pytest.raises(ConfigError, match=r"task\.params\.files.*No such file"):
        QuestionsTask(settings, CODEC)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("babi", "files", []),
        ("babi", "held_out", 1.5),
        ("squad", "queries", 0),
        ("squad", "tokens", 0),
        ("locomo", "sessions", "some"),
        ("reconstruction", "length", 0),
        ("continuation", "context", 0),
    ],
)
def test_wrong_parameters(tmp_path: Path, name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"task\.params\..*{key}"):
        config(name, tmp_path, "", **{key: value})


def parses_or_refuses(settings: QuestionsConfig, path: Path, data: bytes) -> None:
    """All examples can be made, or an InputError names the file."""
    path.write_bytes(data)
    reason = None
    try:
        examples = QuestionsTask(settings, CODEC).evaluation()
    except InputError as error:
        reason = str(error)
    if reason is None:
        assert all(isinstance(example, QuestionsExample) for example in examples)
    else:
        assert f"'{path}'" in reason


FUZZED = settings(max_examples=max(50, settings.default.max_examples))
Edit = Callable[[bytes], bytes]


def edits(alphabet: st.SearchStrategy[bytes]) -> st.SearchStrategy[Edit]:
    """Cuts a file off, or puts a few bytes in the place of others."""
    share = st.floats(0, 1)

    def cut(at: float) -> Edit:
        return lambda data: data[: int(at * len(data))]

    def put(at: float, length: int, new: bytes) -> Edit:
        def edit(data: bytes) -> bytes:
            start = int(at * len(data))
            return data[:start] + new + data[start + length :]

        return edit

    return st.one_of(st.builds(cut, share), st.builds(put, share, st.integers(0, 9), alphabet))


PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\t", b"\n", b"1 ", b'"', b"{", b"[]", b"null", b"\\ud800", b",", b"-1"]),
)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore:.*name no session")
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp(name)
    params = config(name, folder, held_out=1)

    @FUZZED
    @given(st.lists(edits(PIECES), min_size=1, max_size=3))
    def run(steps: list[Edit]) -> None:
        data = SAMPLES[name].encode()
        for step in steps:
            data = step(data)
        parses_or_refuses(params, folder / "file", data)

    run()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=3,
)


def places(data: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside of data."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [found for key in keys for found in [(*way, key), *places(data[key], (*way, key))]]


@pytest.mark.parametrize(("name", "sample"), JSON_SAMPLES.items())
@pytest.mark.filterwarnings("ignore:.*name no session")
def test_json_of_another_shape_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, sample: Any
) -> None:
    folder = tmp_path_factory.mktemp(name)
    params = config(name, folder, held_out=1)

    @FUZZED
    @given(st.sampled_from(places(sample)), JSON)
    def run(way: tuple[Any, ...], value: Any) -> None:
        data = json.loads(json.dumps(sample))
        part = data
        for key in way[:-1]:
            part = part[key]
        part[way[-1]] = value
        parses_or_refuses(params, folder / "file", json.dumps(data).encode())

    run()


# ---- words -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*name no session")
@pytest.mark.parametrize("name", ["babi", "squad", "locomo", "text", "reconstruction"])
def test_tokenizers_learn_from_training_text_alone(tmp_path: Path, name: str) -> None:
    texts = {"babi": STORIES, "squad": None, "locomo": None}.get(name, PROSE)
    params = config(name, tmp_path, texts, held_out=0.5)
    assert isinstance(params, Texts)
    said = " ".join(params.texts())
    first, last = {"babi": ("key is 0", "is 39"), "squad": ("Normans", "Rollo")}.get(
        name, ("", "day 29")
    )
    assert first in said
    assert last not in said
    if name == "babi":
        assert "What is the key? 0" in said


def test_words_that_nobody_knows_are_one_unknown_token(tmp_path: Path) -> None:
    tokenizer = train_words(["Mary moved to the hallway.", "Where is Mary?"])
    assert tokenizer.vocab_size == 3 + 9
    known = tokenizer.encode("Where is the hallway?")
    assert tokenizer.decode(known) == "Where is the hallway ?"
    assert len(set(tokenizer.encode("Zorro naïve 9"))) == 1
    assert tokenizer.encode("Zorro")[0] not in known
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    text = "Where is Zorro? <|end|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert (again.vocab_size, again.bos_id, again.eos_id) == (tokenizer.vocab_size, 0, 1)


def test_the_rarest_words_go_first() -> None:
    tokenizer = train_words(["a a a b b c"], 5)
    assert tokenizer.vocab_size == 5
    assert len({*tokenizer.encode("a"), *tokenizer.encode("b"), *tokenizer.encode("c d")}) == 3
