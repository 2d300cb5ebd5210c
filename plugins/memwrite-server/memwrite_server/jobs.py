"""What a model is asked to do: answer from a memory, and write a text into one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from memwrite.backbones.generation import RowStreams, TextStream, text_of, until_end
from memwrite.memory import Memory
from memwrite.state import MemoryState, Tokens
from memwrite_server.batcher import Job
from memwrite_server.stopping import Stopper


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: without end tokens, and cut before a stop string.
        tokens: that were generated.
        reason: "stop" where the model or a stop string ended it, "length" where it was cut off.
    """

    text: str
    tokens: int
    reason: Literal["stop", "length"]


class Ask(Job):
    """Continue a prompt behind the state of one memory.

    Args:
        state: one row.
        prompt: (1, T).
        options: of `Memory.generate`.
        stops: strings that end the answer.
        seed: of samples; such a job is a batch of its own.
        receive: is called with each piece of the answer as it is generated, in another thread.
    """

    counts = "generated"

    def __init__(
        self,
        state: MemoryState,
        prompt: Tokens,
        options: dict[str, Any],
        stops: Sequence[str] = (),
        seed: int | None = None,
        receive: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__()
        self.state, self.prompt, self.options, self.seed = state, prompt, options, seed
        self.stopper = Stopper(stops, self._receive if receive else None)
        self._to = receive

    def _receive(self, piece: str) -> None:
        assert self._to is not None
        self.streamed = True
        self._to(piece)

    @property
    def group(self) -> Hashable:
        """Prompts of about one length go together; how they are padded is the core's business."""
        own = None if self.seed is None else id(self)
        length = self.prompt.ids.shape[1].bit_length()
        return self.state.spec, length, tuple(sorted(self.options.items())), own

    @classmethod
    def run(cls, memory: Memory, jobs: Sequence[Ask]) -> list[Answer]:
        """Generate all answers together."""
        first, tokenizer, ends = jobs[0], memory.backbone.tokenizer, memory.backbone.info.end_ids
        options = dict(first.options)
        streams = [TextStream(tokenizer.decode, ends, job.stopper) for job in jobs]
        watched = [job.stopper.watches for job in jobs]
        if any(watched):
            options["streamer"] = RowStreams(
                [stream if watch else None for stream, watch in zip(streams, watched, strict=True)]
            )
        options["stopping_criteria"] = StoppingCriteriaList([_Over(jobs)])
        state = MemoryState.stack([job.state for job in jobs])
        query = Tokens.from_rows([job.prompt.ids[0].tolist() for job in jobs])
        with _seeded(first.seed):
            new = memory.generate(state, query, **options)
        answers = []
        for job, row in zip(jobs, new.tolist(), strict=True):
            kept = until_end(row, ends)
            text = tokenizer.decode(text_of(row, ends))
            ended = bool(kept) and kept[-1] in ends
            if not job.stopper.watches:
                job.stopper(text)
            ended = job.stopper.finish() or ended
            answers.append(Answer(job.stopper.text, len(kept), "stop" if ended else "length"))
        return answers


class _Over(StoppingCriteria):  # type: ignore[misc]
    """Ends a batch in which no answer is waited for any longer."""

    def __init__(self, jobs: Sequence[Ask]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        over = all(job.stopper.stopped or job.unwanted.is_set() for job in self._jobs)
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)


def _seeded(seed: int | None) -> Any:
    return nullcontext() if seed is None else _Seed(seed)


class _Seed:
    """Samples from a seed of its own within a block."""

    def __init__(self, seed: int) -> None:
        self._seed, self._fork = seed, torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        state: one row.
        tokens: of the text.
    """

    state: MemoryState
    tokens: int


class Write(Job):
    """Write a text into the state of one memory, or into that of a new one.

    Args:
        text: the text.
        state: one row; None for a new memory.
    """

    counts = "written"

    def __init__(self, text: str, state: MemoryState | None = None) -> None:
        super().__init__()
        self.text, self.state = text, state

    @property
    def group(self) -> Hashable:
        """Texts of about one length go together, each into a state of one size."""
        spec = None if self.state is None else self.state.spec
        bounded = spec is None or spec.bounded
        return spec, len(self.text).bit_length(), None if bounded else id(self)

    @classmethod
    def run(cls, memory: Memory, jobs: Sequence[Write]) -> list[Written]:
        """Write all texts together."""
        if not memory.writer.spec.bounded and len(jobs) > 1:
            return [cls.run(memory, [job])[0] for job in jobs]
        states = [job.state for job in jobs if job.state is not None]
        before = MemoryState.stack(states) if states else None
        tokens = memory.encode([job.text for job in jobs], state=before)
        with torch.no_grad():
            state = memory.write(tokens, before).state
        lengths = tokens.lengths.tolist()
        return [Written(state.rows(slice(i, i + 1)), lengths[i]) for i in range(len(jobs))]
