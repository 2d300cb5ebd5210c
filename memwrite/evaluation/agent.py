"""A memory as benchmarks of memory call one: reset, feed, answer."""

from __future__ import annotations

from typing import Any

from memwrite.errors import InputError
from memwrite.evaluation.controls import evaluation_mode
from memwrite.memory import Memory
from memwrite.state import MemoryState


class MemoryAgent:
    """One memory that is fed texts, one after the other, and answers questions from its state alone.

    Nothing but the state is kept of a text, and nothing at all of a question.

    Args:
        memory: writes and answers.
        options: of `Memory.ask`, such as max_new_tokens.

    Attributes:
        state: all that the agent knows.

    Raises:
        InputError: the memory has no writer.
    """

    def __init__(self, memory: Memory, **options: Any) -> None:
        if not memory.can_write:
            raise InputError(
                "an agent needs a memory that can write: open a run folder or a config"
            )
        self._memory, self._options = memory, options
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.state: MemoryState = self._memory.writer.init(1).detach()

    def feed(self, text: str) -> None:
        """Write a text into the memory.

        Raises:
            InputError: it is empty, or does not fit.
        """
        with evaluation_mode(self._memory):
            self.state = self._memory.write(text, self.state).state

    def answer(self, question: str) -> str:
        """Return what the memory answers.

        Raises:
            InputError: the question does not fit the model's positions.
        """
        said: str = self._memory.ask(self.state, question, **self._options)
        return said
