"""The writer that descends a memory on a frozen model, with many steps and nothing learned beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.protocols import Backbone, WriteOutput
from memwrite.state import MemoryState, PackedTokens, Tokens
from memwrite.utils.progress import track
from memwrite_gradient.frozen.config import CartridgeConfig, DescentConfig, SoftPromptConfig
from memwrite_gradient.frozen.descent import SETTLED, descend
from memwrite_gradient.frozen.divergence import divergence
from memwrite_gradient.frozen.forms import Form, KeyValueForm, PrefixForm, predictions
from memwrite_gradient.frozen.starts import build_start
from memwrite_gradient.frozen.study import Study, Teacher

#: Numbers of keys and values, or of logits, that are held at once: rows beyond them wait their turn.
AT_ONCE = 2**27
#: Written texts are no longer than what the model has in sight, which has no more to say, or than so many tokens and a prompt.
SHORTEST = 8


class DescentWriter(nn.Module):
    """Descends a memory of a context until the model with it predicts like the model with the context.

    Args:
        config: see `DescentConfig`.
        backbone: the model; never changed.
        form: of the memory.

    Raises:
        ConfigError: the start or the texts cannot be had.
    """

    def __init__(self, config: DescentConfig, backbone: Backbone, form: Form) -> None:
        super().__init__()
        self.config = config
        self._backbone, self._form = backbone, form
        self.start = build_start(config, form, backbone)
        self.spec = self.start.spec
        study = config.study
        self.reserved_positions = self.start.reserved_positions + config.slots + study.length
        self._prompts = [backbone.encode(prompt) if prompt else [] for prompt in study.prompts]
        if max(map(len, self._prompts)) >= study.length:
            raise ConfigError("writer.params.study.prompts must be shorter than study.length")
        self._texts = None if study.file is None else _texts(study.file, backbone, study.length)

    def init(self, batch_size: int, /) -> MemoryState:
        """Return the state of memories that have read nothing."""
        return self.start.empty(batch_size)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Descend from the start on texts that the model with the context writes, or on the context itself.

        A memory that holds something already goes on from there, and "the context" is what it holds and the new one.

        Returns:
            The new state. Trace: "loss" (steps, B), before each step, in nats per token; "value_kept" (1, B), of the
            memory, and "value_kept_at_start" (1, B), on texts that were held out from the descent: 1 - KL(with context
            ‖ with memory) / KL(with context ‖ with nothing); "quotes_kept" and "quotes_kept_at_start" likewise, on quotes,
            where the descent takes some; "kept_step" (1, B), after which the memory was as it is.

        Raises:
            DivergenceError: loss or memory are not finite.
        """
        rows, device = len(context.lengths), context.ids.device
        with torch.inference_mode(False):
            context, state = context.clone(), state.clone().detach()
            after = state.clone()
            trace = {"loss": torch.zeros(self.config.steps, rows, device=device)}
            for name in (*self._kept(), "kept_step"):
                trace[name] = torch.zeros(1, rows, device=device)
            groups = list(self._groups(state, context))
            ticks = track(range(len(groups) * (self.config.steps + 1)), "write")
            for index, written in groups:
                some = context.rows(index).packed()
                new, told = self._descend(state.rows(index), some, written, index, ticks)
                for name, tensor in new.tensors.items():
                    after[name][index] = tensor
                for name, tensor in told.items():
                    trace[name][:, index] = tensor.to(trace[name])
            for _ in ticks:  # closes the bar
                pass
        return WriteOutput(after, {}, trace)

    def _groups(self, state: MemoryState, context: PackedTokens) -> Iterator[tuple[Tensor, bool]]:
        """Yield rows that are descended together, and whether they hold something already."""
        empty = self.start.empty(len(context.lengths))
        held = torch.zeros_like(context.lengths, dtype=torch.bool)
        for name, tensor in state.tensors.items():
            held |= (tensor != empty[name]).reshape(len(held), -1).any(1)
        study, vocab = self.config.study, self._backbone.info.vocab_size
        numbers = study.per_step * max(self._numbers(context), study.length * vocab)
        size = max(1, AT_ONCE // numbers)
        for written in (False, True):
            chosen = (context.mask.any(1) & (held == written)).nonzero().flatten()
            for first in range(0, len(chosen), size):
                yield chosen[first : first + size], written

    def _numbers(self, context: PackedTokens) -> int:
        """Return the numbers of keys and values of one text behind its context."""
        info, length = self._backbone.info, context.ids.shape[1] + self.config.study.length
        return length * 2 * info.layers * info.kv_heads * info.head_dim

    def _descend(
        self,
        state: MemoryState,
        context: PackedTokens,
        written: bool,
        index: Tensor,
        ticks: Iterator[int],
    ) -> tuple[MemoryState, dict[str, Tensor]]:
        """Return the memory of some rows, and their trace."""
        with torch.no_grad():
            before = self._form.condition(state) if written else None
            open_end = _without_end(context, self._backbone.info.eos_id)
            at_once = max(1, AT_ONCE // (len(index) * self._numbers(context)))
            teacher = Teacher.reading(self._backbone, before, open_end, at_once)
            exams, lesson_of = self._studies(teacher, open_end)
            start = self.start.of(state, context, written)
            worth = torch.stack([self._divergence(None, exam) for exam in exams])
        next(ticks)
        done = descend(
            start,
            self._form,
            self.config,
            lambda memory, step: self._divergence(memory, lesson_of(step)),
            lambda memory: (
                torch.stack([self._divergence(memory, exam) for exam in exams]) / (worth + SETTLED)
            ),
            ticks,
            index,
        )
        shares = 1 - torch.stack([done.end, done.start], 1).flatten(0, 1)
        told = dict(zip(self._kept(), shares, strict=True))
        return done.memory, {**told, "loss": done.losses, "kept_step": done.step}

    def _kept(self) -> list[str]:
        """Return the names of what is kept, on each set of texts that is examined, at the end and at the start."""
        quoted = self.config.study.quotes and self.config.objective == "distillation"
        names = ["value_kept", "quotes_kept"] if quoted and self.config.steps else ["value_kept"]
        return [each for name in names for each in (name, f"{name}_at_start")]

    def _studies(
        self, teacher: Teacher, context: PackedTokens
    ) -> tuple[list[Study], Callable[[int], Study]]:
        """Return the texts that memories are examined on, first those that are held out from the descent, and what gives
        those of each step.

        Text that goes on repeats what was there more than what the model writes does: where a descent takes quotes, so
        does the examination.
        """
        config, study = self.config, self.config.study
        own, quoted = study.per_step - study.quotes, study.quotes
        distilled = config.objective == "distillation"
        written = study.texts if own and distilled and self._texts is None else 0
        seeds = [config.seed * 1_000_003 + n for n in range(study.held_out + written)]
        longest = teacher.past.next_position.clamp(min=SHORTEST + max(map(len, self._prompts)))
        length = min(study.length, int(longest.max()))
        texts = teacher.write(self._prompts, length, study.temperature, seeds).cut(longest)
        held_out, texts = texts.part(0, study.held_out), texts.part(study.held_out, written)
        if not distilled:
            whole = Study.of_context(context, self._backbone)
            return [held_out], lambda step: whole
        if own and self._texts is not None:
            given = Tokens.from_rows(self._texts, context.ids.device)
            shape = (len(context.lengths), *given.ids.shape)
            texts = teacher.explain(given.ids.expand(shape), given.mask.expand(shape))
        most = quoted * config.steps
        quotes = teacher.quote(context, length, most) if most else None

        def lesson(step: int) -> Study:
            if quotes is None:
                return texts.texts(step * own, own)
            some = quotes.texts(step * quoted, quoted)
            return texts.texts(step * own, own).beside(some) if own else some

        if quotes is None:
            return [held_out], lesson
        return [held_out, teacher.quote(context, length, study.held_out)], lesson

    def _divergence(self, memory: MemoryState | None, study: Study) -> Tensor:
        """Return (B,): how far the model with the memory, or with nothing, is from what the texts say."""
        conditioning = None
        if memory is not None:
            count = study.ids.shape[1]
            rows = torch.arange(len(study.ids), device=study.ids.device).repeat_interleave(count)
            conditioning = self._form.condition(memory.rows(rows))
        hidden = predictions(self._backbone, conditioning, study.embeddings.flatten(0, 1))
        return divergence(self._backbone, hidden, study, self.config.study.top_k)


class CartridgeWriter(DescentWriter):
    """Descends keys and values (Cartridges, arXiv 2506.06266)."""

    def __init__(self, config: CartridgeConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone, KeyValueForm(backbone, config.slots, config.frozen_sink))


class SoftPromptWriter(DescentWriter):
    """Descends vectors that stand before the text."""

    def __init__(self, config: SoftPromptConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone, PrefixForm(backbone, config.slots))


def _texts(path: str, backbone: Backbone, length: int) -> list[list[int]]:
    """Read the texts of a file as token ids, one a line, cut to `length`.

    Raises:
        ConfigError: it cannot be read, or holds no text of two tokens.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"writer.params.study.file '{path}' cannot be read: {error}") from None
    rows = [backbone.encode(line)[:length] for line in lines if line.strip()]
    if not (rows := [row for row in rows if len(row) > 1]):
        raise ConfigError(f"writer.params.study.file '{path}' holds no text of at least two tokens")
    return rows


def _without_end(context: PackedTokens, end: int) -> PackedTokens:
    """Return contexts without the end token that closes them: texts go on from there.

    A context of nothing else keeps it.
    """
    last = context.ids.gather(1, context.lengths[:, None] - 1)[:, 0]
    closed = (last == end) & (context.lengths > 1)
    places = torch.arange(context.ids.shape[1], device=context.ids.device)
    return PackedTokens(context.ids, places < (context.lengths - closed.long())[:, None])
