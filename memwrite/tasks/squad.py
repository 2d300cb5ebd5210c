"""Questions on paragraphs of Wikipedia, from SQuAD's JSON files (Rajpurkar et al. 2016 and 2018, v1.1 and v2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memwrite.backbones.segmentation import sentences
from memwrite.tasks.files import Node, read_json
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, prompt

#: The right answer where the paragraph holds none.
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class SquadConfig(QuestionsConfig):
    """SQuAD files. Contexts are paragraphs, their sentences being the segments, queries the questions on them.

    Attributes:
        impossible: whether to keep the questions of v2.0 that have no answer; what they want then is `UNANSWERABLE`.
    """

    impossible: bool = True

    def read(self, path: Path) -> list[list[Passage]]:
        """See `read_paragraphs`; each may be held out by itself."""
        return [[paragraph] for paragraph in read_paragraphs(path, self.impossible)]


def read_paragraphs(path: Path, impossible: bool) -> list[Passage]:
    """The paragraphs of a file that have questions.

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
        Passage(tuple(piece.strip() for piece in sentences(context) if piece.strip()), questions)
        for article in whole.get("data").items()
        for paragraph in article.get("paragraphs").items()
        for context in [paragraph.get("context").text()]
        if (questions := _questions(paragraph, impossible))
    ]
    if not paragraphs:
        raise whole.fault("holds no question")
    return paragraphs


def _questions(paragraph: Node, impossible: bool) -> tuple[Question, ...]:
    found = ((asked, _answers(asked)) for asked in paragraph.get("qas").items())
    return tuple(
        Question(prompt(asked.get("question").text()), *wanted)
        for asked, wanted in found
        if impossible or wanted[0] != (UNANSWERABLE,)
    )


def _answers(asked: Node) -> tuple[tuple[str, ...], str]:
    """The right answers, each once, and what the question is counted under."""
    flag = asked.find("is_impossible")
    if flag is not None and flag.boolean():
        return (UNANSWERABLE,), "without an answer"
    given = asked.get("answers")
    texts = tuple(dict.fromkeys(answer.get("text").text() for answer in given.items()))
    if not texts:
        raise given.fault("no answer is given")
    return texts, "with an answer"
