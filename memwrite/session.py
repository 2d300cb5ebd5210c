"""Online use of a memory: text comes in, questions are asked, and all that stays is the state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.generation import text_of, until_end
from memwrite.backbones.segmentation import (
    TextOrMessages,
    batch_segments,
    opened,
    tokenize_segments,
)
from memwrite.checkpoints.state_file import load_state
from memwrite.errors import InputError
from memwrite.inference import online
from memwrite.memory import Memory
from memwrite.protocols import LayerReader, OnlineWriter, WriteOutput
from memwrite.state import MemoryState, Tokens


class Session:
    """One user's memory at work. Sessions share a model and never each other's state, in whatever threads.

    An online writer of granularity "token" writes every token as it is read or generated; any other one writes an
    exchange when it is over. Nothing but the state is kept between calls: no text, no keys and values.

    Args:
        memory: in evaluation mode while the session lasts.
        state: one row to start from; by default that of a memory that has read nothing.
        read_only: nothing is written.

    Attributes:
        state: all that the session knows.
        read_only: may be changed at any time.
        last: what the latest write gave back, for people to look at; None before it.

    Raises:
        InputError: the memory cannot write and is asked to, the state has several rows, or an argument is of another
            type.
    """

    def __init__(
        self, memory: Memory, state: MemoryState | None = None, read_only: bool = False
    ) -> None:
        if not isinstance(memory, Memory):
            raise InputError(f"a session needs a Memory, but was given a {type(memory).__name__}")
        if state is not None and not isinstance(state, MemoryState):
            raise InputError(
                f"a session goes on from a MemoryState, but was given a {type(state).__name__}: "
                f"use session.load for a file"
            )
        if not memory.can_write and (state is None or not read_only):
            raise InputError(
                "this memory was opened from a state file and can only read: give its state and read_only=True"
            )
        if state is not None and state.batch_size not in (None, 1):
            raise InputError(f"a session holds one memory, but the state has {state.batch_size}")
        self._memory = memory
        self.state = self._empty() if state is None else state
        self.read_only = read_only
        self.last: WriteOutput | None = None

    def append(self, text: TextOrMessages) -> None:
        """Read a text or chat messages, and write them into the state.

        Raises:
            InputError: the text is empty, or the session is read-only.
        """
        if self.read_only:
            raise InputError("this session is read-only: set its read_only to False to write")
        self._write(self._tokenize(text, answer=False))

    def ask(self, text: TextOrMessages, **options: Any) -> str:
        """Continue a text, or answer messages, from the state; both are written unless the session is read-only.

        Args:
            text: a text to continue, or chat messages to answer.
            options: of transformers' `generate`; one sequence is returned.

        Raises:
            InputError: the text is empty, or it does not fit the model's positions.
        """
        memory = self._memory
        asked = self._tokenize(text, answer=True)
        ids = batch_segments([asked], "token", memory.backbone.info.device).ids
        if options.get("num_return_sequences", 1) not in (1, None):
            raise InputError("an answer is one sequence: leave num_return_sequences out")
        streaming = self._streaming()
        if self.read_only or streaming is None:
            query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
            answer = self._until_end(memory.generate(self.state, query, **options))
            if not self.read_only:
                self._write([*asked, answer])
        else:
            with torch.no_grad():
                new, done = online.continue_text(
                    memory.backbone, *streaming, ids, self.state, options
                )
            self._keep(done.written)
            answer = self._until_end(new)
        return memory.backbone.tokenizer.decode(text_of(answer, memory.backbone.info.end_ids))

    def fork(self) -> Session:
        """Return another session that goes on from this one's state."""
        return Session(self._memory, self.state.clone(), self.read_only)

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.last = self._empty(), None

    def save(self, path: str | Path) -> None:
        """Write a state file; see `Memory.save`."""
        self._memory.save(self.state, path)

    def load(self, path: str | Path) -> None:
        """Go on from a state file.

        Raises:
            StorageError: it cannot be used, is for another backbone, reader or size of state, or another writer wrote it.
        """
        self.state, self.last = self._memory.adopt(load_state(path), str(path)), None

    def _empty(self) -> MemoryState:
        if not self._memory.can_write:
            raise InputError("this memory has no writer, so there is no empty state to go back to")
        return self._memory.writer.init(1).detach()

    def _streaming(self) -> tuple[OnlineWriter, LayerReader] | None:
        """Return the writer and the reader, if every token is written as soon as it is read."""
        if not self._memory.can_write:
            return None
        writer: Any = self._memory.writer
        reader: Any = self._memory.reader
        if not isinstance(writer, OnlineWriter) or writer.granularity != "token":
            return None
        return (writer, reader) if isinstance(reader, LayerReader) else None

    def _tokenize(self, text: TextOrMessages, answer: bool) -> list[list[int]]:
        tokenizer = self._memory.backbone.tokenizer
        segments = tokenize_segments(tokenizer, text, self._memory.granularity, answer)
        templated = not isinstance(text, str) and tokenizer.has_template
        # A chat template opens the text by itself, where it does.
        opens = not templated and all(self._memory.opens(self.state))
        return opened(tokenizer, segments) if opens else segments

    def _write(self, segments: Sequence[Sequence[int]]) -> None:
        memory = self._memory
        tokens = batch_segments([segments], memory.granularity, memory.backbone.info.device)
        with torch.no_grad():
            self._keep(memory.write(tokens, self.state))

    def _keep(self, written: WriteOutput) -> None:
        self.state, self.last = written.state, written

    def _until_end(self, new: Tensor) -> list[int]:
        return until_end(new[0].tolist(), self._memory.backbone.info.end_ids)
