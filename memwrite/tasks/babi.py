"""bAbI question answering (Weston et al. 2015, arXiv 1502.05698), from the official text files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memwrite.errors import InputError
from memwrite.tasks.files import read_text
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, prompt

_LINE = re.compile(r"([0-9]{1,9}) (.*\S.*)")
_FACTS = re.compile(r"[0-9]{1,9}( [0-9]{1,9})*")


@dataclass(frozen=True)
class BabiConfig(QuestionsConfig):
    """bAbI files, of which whole stories are held out.

    An example is a place in a story with questions. Its context is the statements before that place, each a segment;
    its queries are the questions. A question counts under its file's name. Other attributes as
    in `QuestionsConfig`.

    Attributes:
        facts: expect the supporting statements behind each answer ("strong supervision" in the paper): a first
            stage of training, since where to look is learnt far sooner from many words than from one.
        prompted: put a question as the other tasks do, see `prompt`, and not by itself.
    """

    in_words = False

    facts: bool = False
    prompted: bool = False

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file, see `read_stories`."""
        stories = read_stories(path, self.facts)
        return [[_prompted(p) for p in story] for story in stories] if self.prompted else stories


def read_stories(path: Path, facts: bool = False) -> list[list[Passage]]:
    """Read the stories of a file, each as passages of statements with the questions behind them.

    A line is `ID statement` or, with tabs, `ID question<tab>answer<tab>IDs of supporting statements`. IDs count from 1
    in every story. The answer may be a list ("apple,football"); with `facts` the supporting statements stand behind it.

    Raises:
        ConfigError: the file cannot be read.
        InputError: a line is none of these, a story ends without a question, or there is no story.
    """
    return [_passages(path, story, facts) for story in _stories(path)]


def _stories(path: Path) -> Iterator[list[tuple[int, str]]]:
    """For each story its lines, in order, without their IDs but with their numbers in the file."""
    story: list[tuple[int, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise _fault(path, number, "should be a number, a space and a text")
        own = int(match[1])
        if own == 1 and story:
            yield story
            story = []
        if own != len(story) + 1:
            raise _fault(path, number, f"is numbered {own} where {len(story) + 1} should come")
        story.append((number, match[2]))
    if not story:
        raise InputError(f"'{path}': holds no story")
    yield story


def _passages(path: Path, story: list[tuple[int, str]], facts: bool) -> list[Passage]:
    statements: dict[int, str] = {}
    questions: dict[int, list[Question]] = {}
    for own, (number, text) in enumerate(story, 1):
        if "\t" in text:
            question = _question(path, number, text, statements, facts)
            questions.setdefault(len(statements), []).append(question)
        else:
            statements[own] = text.strip()
    number, text = story[-1]
    if "\t" not in text:
        raise _fault(path, number, "the story ends without a question: is the file cut off?")
    texts = tuple(statements.values())
    return [Passage(texts[:count], tuple(group)) for count, group in questions.items()]


def _question(
    path: Path, number: int, line: str, statements: dict[int, str], facts: bool
) -> Question:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != 3:
        fault = (
            "a question has 3 fields with tabs between them (question, answer, supporting lines)"
        )
        raise _fault(path, number, f"{fault}, this one has {len(fields)}")
    question, answer, supporting = fields
    if not question or not answer:
        raise _fault(path, number, f"the {'answer' if question else 'question'} is empty")
    if not _FACTS.fullmatch(supporting):
        raise _fault(path, number, f"the supporting lines should be numbers, are '{supporting}'")
    lines = [int(fact) for fact in supporting.split()]
    for fact in lines:
        if fact not in statements:
            raise _fault(path, number, f"the supporting line {fact} is no statement before it")
    support = [statements[fact] for fact in lines] if facts else []
    return Question(question, (" ".join([answer, *support]),), path.name)


def _prompted(passage: Passage) -> Passage:
    questions = (replace(q, prompt=prompt(q.prompt)) for q in passage.questions)
    return replace(passage, questions=tuple(questions))


def _fault(path: Path, number: int, reason: str) -> InputError:
    return InputError(f"'{path}', line {number}: {reason}")
