"""Online use of a memory: text comes in, questions are asked, and all that stays is the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memwrite.backbones.chat import Message
from memwrite.backbones.conversation import Place, closing, say, separator
from memwrite.backbones.generation import TextStream, text_of, until_end
from memwrite.backbones.segmentation import (
    TextOrMessages,
    batch_segments,
    check_messages,
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

    Where the model has a chat template and the state is keys and values (`Memory.turns`), the session is one conversation:
    each call says what comes next in it, and what the model has then read is what the template makes of the whole. A
    state that holds keys and values already, from a file or from `Memory.write`, is taken for a conversation that has begun
    and is in an open user's turn; that is where `Memory.write` and every answer leave one. With other states every call is a
    conversation of its own, as nothing of an earlier one stands before it.

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
        # The state whose place in a conversation is known, and that place.
        self._at: tuple[MemoryState, Place] | None = None
        if state is None:
            self._at = self.state, Place.BEGINNING
        self.read_only = read_only
        self.last: WriteOutput | None = None

    def append(self, text: TextOrMessages) -> None:
        """Read a text or chat messages, and write them into the state.

        In a conversation a text is the beginning of the next user's message, as a document that is pasted before a question.

        Raises:
            InputError: the text is empty, the messages do not fit the conversation, or the session is read-only.
        """
        if self.read_only:
            raise InputError("this session is read-only: set its read_only to False to write")
        place = self._standing()
        if place is None:
            self._write(self._tokenize(text, answer=False))
            return
        messages = self._messages(text)
        if isinstance(text, str):
            stop = Place.TEXT
        else:
            stop = Place.MESSAGE if messages[-1]["role"] == "user" else Place.TURN
        self._write([say(self._memory.backbone.tokenizer, messages, place, stop)], stop)

    def ask(
        self,
        text: TextOrMessages,
        *,
        raw: bool | None = None,
        stream: Callable[[str], object] | None = None,
        **options: Any,
    ) -> str:
        """Answer a question or messages from the state; both are written unless the session is read-only.

        Args:
            text: chat messages to answer, or a text: a user's message where `Memory.chat` holds, else a text to continue.
            raw: True continues a text, whatever the model.
            stream: is called with each piece of the answer as it is generated.
            options: of transformers' `generate`; one sequence is returned.

        Raises:
            InputError: the text is empty, it does not fit the model's positions, or messages do not fit the conversation.
        """
        memory = self._memory
        if options.get("num_return_sequences", 1) not in (1, None):
            raise InputError("an answer is one sequence: leave num_return_sequences out")
        asked, place = self._asked(text, raw)
        ids = batch_segments([asked], "token", memory.backbone.info.device).ids
        if stream is not None:
            ends = memory.backbone.info.end_ids
            options["streamer"] = TextStream(memory.backbone.tokenizer.decode, ends, stream)
        streaming = self._streaming()
        if self.read_only or streaming is None:
            query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
            new = self._until_end(memory.generate(self.state, query, **options))
            if not self.read_only and place is None:
                self._write([*asked, new])
            elif not self.read_only:
                # The template's own tokens end the turn, whatever ended the answer.
                end = closing(memory.backbone.tokenizer)
                self._write([[*asked[0], *self._text_of(new), *end]], Place.TURN)
        else:
            with torch.no_grad():
                written, done = online.continue_text(
                    memory.backbone, *streaming, ids, self.state, options
                )
            self._keep(done.written)
            new = self._until_end(written)
        return memory.backbone.tokenizer.decode(self._text_of(new))

    def prompt(self, text: TextOrMessages, *, raw: bool | None = None) -> Tokens:
        """Return (1, T), what `ask` puts behind the state.

        Raises:
            InputError: as in `ask`.
        """
        asked, _ = self._asked(text, raw)
        return batch_segments([asked], "token", self._memory.backbone.info.device)

    def fork(self) -> Session:
        """Return another session that goes on from this one's state."""
        other = Session(self._memory, self.state.clone(), self.read_only)
        other._at = other.state, self._place(self.state)
        return other

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.last = self._empty(), None
        self._at = self.state, Place.BEGINNING

    def save(self, path: str | Path) -> None:
        """Write a state file; see `Memory.save`.

        A user's message that nobody has answered yet is left open in it, for the next question to end.
        """
        session = self
        if self._standing() is Place.MESSAGE:
            session = self.fork()
            session._write([separator(self._memory.backbone.tokenizer)])
        self._memory.save(session.state, path)

    def load(self, path: str | Path) -> None:
        """Go on from a state file.

        Raises:
            StorageError: it cannot be used, is for another backbone, reader or size of state, or another writer wrote it.
        """
        file = load_state(path)
        self.state, self.last = self._memory.adopt(file, str(path)), None
        # What holds a mere text is no conversation that could go on.
        place = self._place(self.state) if file.header.chat else Place.BEGINNING
        self._at = self.state, place

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

    def _place(self, state: MemoryState) -> Place:
        """Return where the conversation behind a state stands."""
        if self._at is not None and self._at[0] is state:
            return self._at[1]
        return next(iter(self._memory.turns(state)), Place.BEGINNING)

    def _standing(self) -> Place | None:
        """Return where the conversation stands; None if every call is one of its own."""
        return self._place(self.state) if self._memory.turns(self.state) else None

    def _asked(
        self, text: TextOrMessages, raw: bool | None
    ) -> tuple[list[list[int]], Place | None]:
        """Return the segments that ask, and where the conversation stands before them; None if it begins with them."""
        tokenizer = self._memory.backbone.tokenizer
        chat = self._memory.chat if raw is None else not raw
        if chat and isinstance(text, str) and tokenizer.has_template:
            text = self._messages(text)
        place = None if isinstance(text, str) else self._standing()
        if place is None:
            return self._tokenize(text, answer=True), None
        return [say(tokenizer, self._messages(text), place, Place.ANSWER)], place

    def _messages(self, text: TextOrMessages) -> Sequence[Message]:
        if not isinstance(text, str):
            check_messages(text)
            return text
        if not text:
            raise InputError("there is nothing to read: give a text or messages")
        return [{"role": "user", "content": text}]

    def _tokenize(self, text: TextOrMessages, answer: bool) -> list[list[int]]:
        tokenizer = self._memory.backbone.tokenizer
        segments = tokenize_segments(tokenizer, text, self._memory.granularity, answer)
        templated = not isinstance(text, str) and tokenizer.has_template
        # A chat template opens the text by itself, where it does.
        opens = not templated and all(self._memory.opens(self.state))
        return opened(tokenizer, segments) if opens else segments

    def _write(self, segments: Sequence[Sequence[int]], stop: Place | None = None) -> None:
        memory = self._memory
        tokens = batch_segments([segments], memory.granularity, memory.backbone.info.device)
        with torch.no_grad():
            self._keep(memory.write(tokens, self.state))
        if stop is not None:
            self._at = self.state, stop

    def _keep(self, written: WriteOutput) -> None:
        self.state, self.last = written.state, written

    def _until_end(self, new: Tensor) -> list[int]:
        return until_end(new[0].tolist(), self._memory.backbone.info.end_ids)

    def _text_of(self, new: list[int]) -> list[int]:
        return text_of(new, self._memory.backbone.info.end_ids)
