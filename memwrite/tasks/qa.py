"""Questions on one's own texts, from JSONL: a line for each question."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from memwrite.tasks.files import Node, read_json_lines
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, pieces, prompt


@dataclass(frozen=True)
class QaConfig(QuestionsConfig):
    """JSONL files of {"context": "...", "question": "...", "answers": ["...", ...]}, one question a line.

    Questions on the same context share it, wherever in the file they stand; the sentences of a context are its segments. One
    answer may stand there as a string or a number. An optional "group" is what a question is counted under in an evaluation.
    """

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file; each context may be held out by itself."""
        asked: defaultdict[str, list[Question]] = defaultdict(list)
        for line in read_json_lines(path):
            asked[line.get("context").text()].append(_question(line))
        return [[Passage(pieces(text), tuple(questions))] for text, questions in asked.items()]


def _question(line: Node) -> Question:
    answers, group = line.get("answers"), line.find("group")
    right = [answers] if not isinstance(answers.value, list) else list(answers.items())
    if not right:
        raise answers.fault("no answer is given")
    return Question(
        prompt(line.get("question").text()),
        tuple(dict.fromkeys(answer.words() for answer in right)),
        line.file.stem if group is None else group.words(),
    )
