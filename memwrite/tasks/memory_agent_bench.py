"""Many questions on long texts, from MemoryAgentBench's rows (Hu et al. 2026, arXiv 2507.05257)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memwrite.tasks.files import Node, read_records
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, pieces, prompt

#: How questions are put, by the beginning of their source's name; the others as `prompt` has it.
FORMS = {
    "icl_": "\n{}\nlabel:",
    "factconsolidation_": "\nWhere facts disagree, the one with the largest number is right.\nQuestion: {}\nAnswer:",
}
#: Sources whose answers are numbers of films in a file of their own.
UNREADABLE = "recsys_"


@dataclass(frozen=True)
class MemoryAgentBenchConfig(QuestionsConfig):
    """Rows of MemoryAgentBench, one of its four splits or several. A question counts under its source, such as "eventqa_full".

    The sentences of a context are its segments. Recommendations of films are left out, with a warning.

    Attributes:
        sources: only those whose names begin like one of these; all where there is none.
    """

    sources: list[str] = field(default_factory=list)

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file, see `read_rows`; each context may be held out by itself."""
        return [[passage] for passage in read_rows(path, tuple(self.sources) or ("",))]


def read_rows(path: Path, sources: tuple[str, ...]) -> list[Passage]:
    """Read the contexts of a file with their questions.

    Args:
        path: JSON, JSON Lines or parquet of `{"context", "questions": [...], "answers": [[...]], "metadata": {"source"}}`.
        sources: how the names of those that are wanted begin.

    Raises:
        ConfigError: the file cannot be read.
        InputError: it is no such file, or has nothing of these sources.
        MissingExtra: it is parquet, and pyarrow is not installed.
    """
    rows = read_records(path, "context")
    named = [(row.get("metadata").get("source").text(), row) for row in rows]
    wanted = [(source, row) for source, row in named if source.startswith(sources)]
    readable = [pair for pair in wanted if not pair[0].startswith(UNREADABLE)]
    if lost := len(wanted) - len(readable):
        warnings.warn(
            f"{lost} of {len(rows)} contexts are left out: their answers are numbers of films",
            stacklevel=2,
        )
    if not readable:
        given = ", ".join(sorted({source for source, _ in named}))
        raise rows[0].fault(f"the file has none of the sources that are wanted, only {given}")
    return [
        Passage(pieces(row.get("context").text()), tuple(_questions(row, source)))
        for source, row in readable
    ]


def _questions(row: Node, source: str) -> Iterator[Question]:
    questions, answers = [*row.get("questions").items()], [*row.get("answers").items()]
    if len(questions) == 1 and answers:
        # All that there is answers the one question.
        right = [tuple(text for each in answers for text in _texts(each))]
    else:
        right = [_texts(each) for each in answers]
    if len(questions) != len(right) or not all(right):
        raise row.get("answers").fault(f"{len(right)} answers of {len(questions)} questions")
    form = next((form for name, form in FORMS.items() if source.startswith(name)), None)
    for question, texts in zip(questions, right, strict=True):
        asked = question.text()
        yield Question(prompt(asked) if form is None else form.format(asked), texts, source)


def _texts(node: Node) -> tuple[str, ...]:
    given = [*node.items()] if isinstance(node.value, list) else [node]
    return tuple(dict.fromkeys(each.words() for each in given))
