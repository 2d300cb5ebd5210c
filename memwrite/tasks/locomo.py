"""Questions on long conversations, from LoCoMo's JSON (Maharana et al. 2024, arXiv 2402.17753)."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from memwrite.tasks.files import Node, read_json
from memwrite.tasks.questions import Passage, Question, QuestionsConfig, prompt

ADVERSARIAL = "adversarial"
CATEGORIES = {
    "1": "multi-hop",
    "2": "temporal",
    "3": "open-domain",
    "4": "single-hop",
    "5": ADVERSARIAL,
}
#: The right answers to an adversarial question, which presupposes what nobody said; the authors' evaluation accepts
#: any answer with one of the two. The file's `adversarial_answer` is the trap, and never right.
NOT_MENTIONED = ("Not mentioned in the conversation", "No information available")
SESSIONS = ("all", "evidence")

_SESSION = re.compile(r"session_([0-9]{1,6})")
# As the file has it: "D8:6; D9:17" in one string, and "D:11:26".
_EVIDENCE = re.compile(r"D:?([0-9]{1,6}):[0-9]+")


@dataclass(frozen=True)
class LocomoConfig(QuestionsConfig):
    """LoCoMo files, of which whole conversations are held out. A question counts under its category.

    A session is its date, then its turns, each a segment.

    Attributes:
        sessions: "all", a conversation is one context; or "evidence", the context of a question are the sessions that
            its evidence is in, and questions of the same sessions share it. Questions without evidence are left out
            then, with a warning.
        adversarial: whether to keep the questions of category 5; their answers are `NOT_MENTIONED`.

    Raises:
        ValueError: a value is out of range.
    """

    sessions: str = "evidence"
    adversarial: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sessions not in SESSIONS:
            raise ValueError(f"sessions must be {' or '.join(SESSIONS)}, got '{self.sessions}'")

    def read(self, path: Path) -> list[list[Passage]]:
        """Read the passages of each conversation, see `read_conversations`."""
        conversations = read_conversations(path, self.adversarial)
        if self.sessions == "evidence":
            return [conversation.by_evidence() for conversation in conversations]
        return [conversation.whole() for conversation in conversations]


@dataclass(frozen=True)
class Conversation:
    """A conversation and the questions about it.

    Attributes:
        sessions: number -> date and turns.
        questions: each with the numbers of the sessions that its evidence is in, rising.
    """

    sessions: dict[int, tuple[str, ...]]
    questions: list[tuple[Question, tuple[int, ...]]]

    def whole(self) -> list[Passage]:
        """Return one passage of all sessions with all questions."""
        questions = tuple(question for question, _ in self.questions)
        return [self._passage(tuple(sorted(self.sessions)), questions)] if questions else []

    def by_evidence(self) -> list[Passage]:
        """Return a passage for each set of sessions that questions need, with these questions."""
        shared: dict[tuple[int, ...], list[Question]] = {}
        for question, needed in self.questions:
            shared.setdefault(needed, []).append(question)
        if lost := len(shared.pop((), [])):
            warnings.warn(
                f"{lost} of {len(self.questions)} questions on a conversation name no session as evidence and are left "
                f"out: task.params.sessions=all keeps them",
                stacklevel=2,
            )
        return [self._passage(needed, tuple(questions)) for needed, questions in shared.items()]

    def _passage(self, numbers: tuple[int, ...], questions: tuple[Question, ...]) -> Passage:
        return Passage(tuple(text for n in numbers for text in self.sessions[n]), questions)


def read_conversations(path: Path, adversarial: bool) -> list[Conversation]:
    """Read the conversations of a file.

    Args:
        path: `[{"conversation": {"session_1_date_time", "session_1": [{"speaker", "text"}], ...}, "qa": [{"question",
            "answer", "evidence": ["D1:3"], "category"}]}]`. Turns may have a "blip_caption", what a photo shows.
        adversarial: whether to keep the questions of category 5.

    Raises:
        ConfigError: the file cannot be read.
        InputError: it is no such file, or holds no conversation.
    """
    whole = read_json(path)
    conversations = [_conversation(sample, adversarial) for sample in whole.items()]
    if not conversations:
        raise whole.fault("holds no conversation")
    return conversations


def _conversation(sample: Node, adversarial: bool) -> Conversation:
    node = sample.get("conversation")
    numbers = sorted(int(match[1]) for name in node.names() if (match := _SESSION.fullmatch(name)))
    sessions = {number: _session(node, number) for number in numbers}
    if not sessions:
        raise node.fault("holds no session")
    questions = []
    for item in sample.get("qa").items():
        question = _question(item)
        if adversarial or question.group != ADVERSARIAL:
            questions.append((question, _evidence(item, sessions)))
    return Conversation(sessions, questions)


def _session(conversation: Node, number: int) -> tuple[str, ...]:
    turns = conversation.get(f"session_{number}").items()
    return (
        conversation.get(f"session_{number}_date_time").text(),
        *(_turn(turn) for turn in turns),
    )


def _turn(turn: Node) -> str:
    text = f"{turn.get('speaker').text()}: {turn.get('text').string()}".strip()
    photo = turn.find("blip_caption")
    return text if photo is None else f"{text} [shares {photo.text()}]"


def _question(node: Node) -> Question:
    given = node.get("category")
    category = CATEGORIES.get(given.words())
    if category is None:
        raise given.fault(f"should be a number from 1 to {len(CATEGORIES)}, is {given.words()}")
    return Question(prompt(node.get("question").text()), _answers(node, category), category)


def _answers(node: Node, category: str) -> tuple[str, ...]:
    if category == ADVERSARIAL:
        return NOT_MENTIONED
    answer = node.get("answer").words()
    # What follows a semicolon explains the answer; the authors' evaluation cuts it, too.
    return (answer.split(";")[0].strip() or answer,) if category == "open-domain" else (answer,)


def _evidence(node: Node, sessions: dict[int, tuple[str, ...]]) -> tuple[int, ...]:
    """Return the sessions that a question's evidence is in, as far as it can be read."""
    named = node.find("evidence")
    if named is None:
        return ()
    entries = named.value if isinstance(named.value, list) else [named.value]
    text = " ".join(entry for entry in entries if isinstance(entry, str))
    return tuple(sorted({int(number) for number in _EVIDENCE.findall(text)} & sessions.keys()))
