"""Questions on paragraphs of Wikipedia, from SQuAD's JSON files (Rajpurkar et al. 2016 and 2018, v1.1 and v2.0)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memwrite.errors import ConfigError
from memwrite.tasks.files import Node, read_json
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, pieces, prompt

#: The right answer where the paragraph holds none.
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class SquadConfig(QuestionsConfig):
    """SQuAD files. Contexts are paragraphs, their sentences being the segments, queries the questions on them.

    Attributes:
        impossible: whether to keep the questions of v2.0 that have no answer; their answer is `UNANSWERABLE`.
        articles: titles of the articles that are held out of all files, and nothing else, in place of the end of each file;
            with `held_out` 1 everything is.
    """

    impossible: bool = True
    articles: list[str] = field(default_factory=list)

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file, see `read_articles`; each paragraph may be held out by itself."""
        return [[p] for _, paragraphs in read_articles(path, self.impossible) for p in paragraphs]

    def passages(self) -> tuple[list[Passage], list[Passage]]:
        """Return the passages for training and for evaluation.

        Raises:
            ConfigError: a file cannot be read, or none has an article that is to be held out.
            InputError: a file is damaged.
        """
        if not self.articles or self.held_out == 1:
            return super().passages()
        train: list[Passage] = []
        held_out: list[Passage] = []
        missing = set(self.articles)
        for name in self.files:
            for title, paragraphs in read_articles(Path(self.folder) / name, self.impossible):
                (held_out if title in self.articles else train).extend(paragraphs)
                missing.discard(title)
        if missing:
            raise ConfigError(
                f"task.params.articles: no file has an article '{min(missing)}'; titles are spelt as in the files"
            )
        return train, held_out


def read_articles(path: Path, impossible: bool) -> list[tuple[str, list[Passage]]]:
    """Read the titles of a file's articles, "" where one has none, each with its paragraphs that have questions.

    Args:
        path: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`, in
            v2.0 with an `"is_impossible"` beside the answers.
        impossible: whether to keep the questions that have none.

    Raises:
        ConfigError: the file cannot be read.
        InputError: it is no such file, or has no question.
    """
    whole = read_json(path)
    articles = [
        (_title(article), [*_paragraphs(article, impossible)])
        for article in whole.get("data").items()
    ]
    if not any(paragraphs for _, paragraphs in articles):
        raise whole.fault("holds no question")
    return articles


def _title(article: Node) -> str:
    title = article.find("title")
    return "" if title is None else title.string()


def _paragraphs(article: Node, impossible: bool) -> Iterator[Passage]:
    for paragraph in article.get("paragraphs").items():
        text = paragraph.get("context").text()
        if questions := _questions(paragraph, impossible):
            yield Passage(pieces(text), questions)


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
