"""Questions on one user's chats, from LongMemEval's JSON (Wu et al. 2025, arXiv 2410.10813)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memwrite.tasks.files import Node, read_records
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, prompt

ABSTENTION = "abstention"


@dataclass(frozen=True)
class LongMemEvalConfig(QuestionsConfig):
    """LongMemEval files: the oracle, S or M variant. Each question has a history of its own, and counts under its type.

    A session is its date, then its turns, each a segment; sessions come in the order of their dates. A question says what day
    it is. Questions whose right answer is that nobody said so count under `ABSTENTION`.
    """

    def read(self, path: Path) -> list[list[Passage]]:
        """Read a file, see `read_histories`; each history may be held out by itself."""
        return [[passage] for passage in read_histories(path)]


def read_histories(path: Path) -> list[Passage]:
    """Read the histories of a file, each with its question.

    Args:
        path: `[{"question_id", "question_type", "question", "answer", "question_date", "haystack_dates": ["2023/05/20 (Sat)
            02:21"], "haystack_sessions": [[{"role", "content"}]]}]`.

    Raises:
        ConfigError: the file cannot be read.
        InputError: it is no such file.
    """
    return [
        Passage(_history(entry), (_question(entry),)) for entry in read_records(path, "question")
    ]


def _history(entry: Node) -> tuple[str, ...]:
    dates, sessions = entry.get("haystack_dates"), entry.get("haystack_sessions")
    dated = [*zip(dates.items(), sessions.items(), strict=False)]
    if not dated or len(dates.value) != len(sessions.value):
        raise sessions.fault(f"{len(sessions.value)} sessions of {len(dates.value)} dates")
    told = sorted(((date.text(), session) for date, session in dated), key=lambda each: each[0])
    return tuple(
        text
        for date, session in told
        for text in (date, *(_turn(turn) for turn in session.items()))
    )


def _turn(turn: Node) -> str:
    return f"{turn.get('role').text()}: {turn.get('content').string()}".strip()


def _question(entry: Node) -> Question:
    unsaid = entry.get("question_id").words().endswith("_abs")
    group = entry.get("question_type").text()
    today, asked = entry.get("question_date").text(), entry.get("question").text()
    return Question(
        f"\nCurrent date: {today}{prompt(asked)}",
        (entry.get("answer").words(),),
        ABSTENTION if unsaid else group,
    )
