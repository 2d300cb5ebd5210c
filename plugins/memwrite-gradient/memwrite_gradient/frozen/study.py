"""Texts on which model with context and model with memory are compared, and what the first predicts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone, Conditioning, KeyValues
from memwrite.state import PackedTokens, Tokens
from memwrite.utils.progress import track
from memwrite_gradient.frozen.forms import padded


@dataclass(frozen=True)
class Study:
    """N texts for each of B contexts.

    Attributes:
        ids: (B, N, T).
        mask: (B, N, T) bool, real tokens first.
        embeddings: (B, N, T, D), of the tokens.
        teacher: (B, N, T - 1, D), hidden states of the model with the context from which it predicts the second to
            last token; None where the tokens themselves are to be predicted.
        counts: (B,), how many of the texts are a row's own; None for all of them.
    """

    ids: Tensor
    mask: Tensor
    embeddings: Tensor
    teacher: Tensor | None
    counts: Tensor | None = None

    def part(self, start: int, count: int) -> Study:
        """Return `count` texts of each row from `start` on."""
        return self._chosen((slice(None), slice(start, start + count)))

    def texts(self, start: int, count: int) -> Study:
        """Return `count` texts of each row from `start` on, in turn."""
        device, (total, number) = self.ids.device, self.ids.shape[:2]
        counts = torch.full((total,), number, device=device) if self.counts is None else self.counts
        index = torch.arange(start, start + count, device=device) % counts[:, None]
        return self._chosen((torch.arange(total, device=device)[:, None], index))

    def _chosen(self, which: tuple[Tensor | slice, Tensor | slice]) -> Study:
        teacher = None if self.teacher is None else self.teacher[which]
        return Study(self.ids[which], self.mask[which], self.embeddings[which], teacher)

    def beside(self, other: Study) -> Study:
        """Return the texts of both, for each row."""
        assert self.teacher is not None
        assert other.teacher is not None
        width = max(self.ids.shape[2], other.ids.shape[2])
        ours, theirs = self.widened(width), other.widened(width)
        names = ("ids", "mask", "embeddings", "teacher")
        return Study(*(torch.cat([getattr(ours, n), getattr(theirs, n)], 1) for n in names))

    def widened(self, width: int) -> Study:
        """Return the texts with padding up to `width` tokens."""
        more = width - self.ids.shape[2]
        teacher = None if self.teacher is None else F.pad(self.teacher, (0, 0, 0, more))
        embeddings = F.pad(self.embeddings, (0, 0, 0, more))
        ids, mask = F.pad(self.ids, (0, more)), F.pad(self.mask, (0, more))
        return Study(ids, mask, embeddings, teacher, self.counts)

    def cut(self, lengths: Tensor) -> Study:
        """Return the texts without the tokens that come after the first `lengths` (B,)."""
        places = torch.arange(self.ids.shape[2], device=self.ids.device)
        return replace(self, mask=self.mask & (places < lengths[:, None, None]))

    @classmethod
    def of_context(cls, context: PackedTokens, backbone: Backbone) -> Self:
        """Return the contexts themselves, to be reconstructed."""
        embeddings = backbone.embed(context.ids)
        return cls(context.ids[:, None], context.mask[:, None], embeddings[:, None], None)


@dataclass(frozen=True)
class Teacher:
    """The model with the context in sight.

    Attributes:
        backbone: the model.
        past: keys and values of what the memory held before, and of the context; B rows.
        last: (B, D), the hidden states at its last token.
        at_once: texts that are handled together.
    """

    backbone: Backbone
    past: KeyValues
    last: Tensor
    at_once: int

    @classmethod
    def reading(
        cls, backbone: Backbone, before: Conditioning | None, context: PackedTokens, at_once: int
    ) -> Self:
        """Read contexts (B, T), behind what `before` brings into the model."""
        embeddings, lengths, past, slots = backbone.embed(context.ids), context.lengths, None, 0
        if before is not None:
            past = before.key_values
            if before.prefix is not None:
                slots = before.prefix.shape[1]
                embeddings = torch.cat([before.prefix.to(embeddings.dtype), embeddings], 1)
        done = backbone.forward(embeddings, past=past, lengths=lengths + slots, use_cache=True)
        assert done.key_values is not None
        rows = torch.arange(len(lengths), device=lengths.device)
        return cls(backbone, done.key_values, done.hidden[rows, slots + lengths - 1], at_once)

    def explain(self, ids: Tensor, mask: Tensor, counts: Tensor | None = None) -> Study:
        """Predict the tokens of given texts (B, N, T) behind their contexts."""
        parts = []
        embeddings = _by_row(self.backbone.embed(ids.flatten(0, 1)), len(ids))
        for start in range(0, ids.shape[1], self.at_once):
            some = embeddings[:, start : start + self.at_once]
            past = self._past(some.shape[1])
            hidden = self.backbone.forward(some.flatten(0, 1), past=past).hidden
            parts.append(_by_row(hidden[:, :-1], len(ids)))
        return Study(ids, mask, embeddings, torch.cat(parts, 1), counts)

    def quote(self, context: PackedTokens, length: int, most: int) -> Study:
        """Predict the tokens of passages of the contexts, as if they were repeated behind them.

        Passages of `length` tokens begin at equal distances, of half of it at most unless there are `most` of them; a shorter
        context is one passage.
        """
        spare = (context.lengths - length).clamp(min=0)
        counts = (1 + (2 * spare + length - 1) // length).clamp(max=most)
        number = torch.arange(int(counts.max()), device=spare.device)
        starts = number * spare[:, None] // (counts - 1).clamp(min=1)[:, None]
        places = starts.clamp(max=spare[:, None])[..., None]
        places = places + torch.arange(length, device=spare.device)
        mask = places < context.lengths[:, None, None]
        flat = places.clamp(max=context.ids.shape[1] - 1).flatten(1)
        return self.explain(context.ids.gather(1, flat).view_as(mask), mask, counts)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        length: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> Study:
        """Write texts behind every context, one for each seed.

        The random numbers of a text are those of its seed in every row, so that no row depends on its neighbours.

        Args:
            prompts: token ids that texts begin with, in turn; shorter than `length`.
            length: of the texts.
            temperature: of the sampling.
            seeds: of the texts.
        """
        parts = []
        for start in range(0, len(seeds), self.at_once):
            some = seeds[start : start + self.at_once]
            begins = [prompts[(start + i) % len(prompts)] for i in range(len(some))]
            parts.append(self._write(begins, length, temperature, some))
        return Study(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))

    def _write(
        self, begins: Sequence[Sequence[int]], length: int, temperature: float, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, count, info = len(self.last), len(seeds), self.backbone.info
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = padded(Tokens.from_rows(begins, self.last.device).ids, length)
        fixed = torch.tensor([len(begin) for begin in begins], device=self.last.device)
        ends = torch.tensor(info.end_ids or (info.eos_id,), device=self.last.device)
        past, hidden = self._past(count), self.last.repeat_interleave(count, 0)
        ids = self.last.new_zeros(rows * count, 0, dtype=torch.int64)
        alive = torch.ones(rows * count, dtype=torch.bool, device=self.last.device)
        masks, embeddings, hiddens = [], [], []
        for place in track(range(length), "self-study", unit="token"):
            noise = torch.stack(
                [torch.empty(info.vocab_size).exponential_(generator=g) for g in rngs]
            )
            # The largest of logit / temperature - log(exponential noise) is a sample of the softmax (Gumbel).
            logits = _by_row(self.backbone.logits(hidden), rows) / temperature
            drawn = (logits - noise.to(logits).log()).argmax(-1)
            token = torch.where(place < fixed, given[:, place], drawn).flatten()
            ids = torch.cat([ids, token[:, None]], 1)
            masks.append(alive)
            alive = alive & ~(torch.isin(token, ends) & (place >= fixed).repeat(rows))
            # An embedding may depend on the tokens before its own.
            embeddings.append(self.backbone.embed(ids[:, -info.ngram :])[:, -1])
            if place == length - 1:
                break
            done = self.backbone.forward(embeddings[-1][:, None], past=past, use_cache=True)
            assert done.key_values is not None
            past, hidden = done.key_values, done.hidden[:, -1]
            hiddens.append(hidden)
        stacked = (torch.stack(each, 1) for each in (masks, embeddings, hiddens))
        mask, embedded, teacher = (_by_row(each, rows) for each in stacked)
        return _by_row(ids, rows), mask, embedded, teacher

    def _past(self, count: int) -> KeyValues:
        index = torch.arange(len(self.last), device=self.last.device)
        return self.past.rows(index.repeat_interleave(count))


def _by_row(flat: Tensor, rows: int) -> Tensor:
    """Return (B · N, ...) as (B, N, ...)."""
    return flat.reshape(rows, -1, *flat.shape[1:])
