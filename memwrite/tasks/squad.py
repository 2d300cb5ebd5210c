"""Questions on paragraphs of Wikipedia, from SQuAD's JSON files (Rajpurkar et al. 2016 and 2018, v1.1 and v2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memwrite.tasks.files import Node, read_json
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, pieces, prompt

#: The right answer where the paragraph holds none.
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class SquadConfig(QuestionsConfig):
    """SQuAD files. Contexts are paragraphs, their sentences being the segments, queries the questions on them.

    Attributes:
        impossible: whether to keep the questions of v2.0 that have no answer; their answer is `UNANSWERABLE`.
    """

    impossible: bool = True

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file, see `read_paragraphs`; each paragraph may be held out by itself."""
        return [[paragraph] for paragraph in read_paragraphs(path, self.impossible)]


def read_paragraphs(path: Path, impossible: bool) -> list[Passage]:
    """Read the paragraphs of a file that have questions.

    Args:
        path: `{"data": [{"paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`, in v2.0 with
            an `"is_impossible"` beside the answers.
        impossible: whether to keep the questions that have none.

    Raises:
        ConfigError: the file cannot be read.
        InputError: it is no such file, or has no question.
    """
    whole = read_json(path)
    paragraphs = [
        Passage(pieces(paragraph.get("context").text()), questions)
        for article in whole.get("data").items()
        for paragraph in article.get("paragraphs").items()
        if (questions := _questions(paragraph, impossible))
    ]
    if not paragraphs:
        raise whole.fault("holds no question")
    return paragraphs


def _questions(paragraph: Node, impossible: bool) -> tuple[Question, ...]:
    questions = ((node, *_answers(node)) for node in paragraph.get("qas").items())
    return tuple(
        Question(prompt(node.get("question").text()), answers, group)
        for node, answers, group in questions
        if impossible or answers != (UNANSWERABLE,)
    )


def _answers(question: Node) -> tuple[tuple[str, ...], str]:
    """Return the right answers, each once, and what the question is counted under."""
    flag = question.find("is_impossible")
    if flag is not None and flag.boolean():
        return (UNANSWERABLE,), "without an answer"
    given = question.get("answers")
    texts = tuple(dict.fromkeys(answer.get("text").text() for answer in given.items()))
    if not texts:
        raise given.fault("no answer is given")
    return texts, "with an answer"
