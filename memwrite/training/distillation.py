"""Distillation: a memory is to be to its model what the context in sight is."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.config import SelfStudyConfig
from memwrite.inference.generate import evaluating, generate
from memwrite.inference.predict import predict
from memwrite.inference.prefill_cache import PrefillOutput
from memwrite.memory import Memory
from memwrite.protocols import Conditioning, Predictions
from memwrite.state import Tokens
from memwrite.tasks.base import IGNORED, Batch
from memwrite.training import lora


class Teacher:
    """The model as training found it, with contexts in sight: in evaluation mode, without the corrections that are trained.

    Args:
        memory: whose model it is.
        context: (B, T), each read once for all that is asked about it.

    Raises:
        PositionsExceeded: a context is longer than the model's positions.
    """

    def __init__(self, memory: Memory, context: Tokens) -> None:
        self._memory, self._backbone = memory, memory.backbone
        self._context = context.to(self._backbone.info.device).packed()
        with self._teaching():
            self._read = self._reading()

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        model = self._backbone.model
        with torch.no_grad(), evaluating(model), lora.uncorrected(model):
            yield

    def _reading(self) -> PrefillOutput:
        backbone, (ids, lengths) = self._backbone, (self._context.ids, self._context.lengths)
        run = backbone.forward(backbone.embed(ids), lengths=lengths, use_cache=True)
        first = None
        if bool((lengths > 0).all()):
            rows = torch.arange(len(ids), device=ids.device)
            first = backbone.logits(run.hidden[rows, lengths - 1])
        return PrefillOutput(run.key_values, first)

    def predict(self, batch: Batch) -> Predictions:
        """Return what is predicted of the batch's queries behind their contexts, without any memory.

        Raises:
            PositionsExceeded: a context and its query are longer than the model's positions.
        """
        visible, queries = self._visible(), batch.queries.to(self._backbone.info.device)
        with self._teaching():
            return predict(self._backbone, visible, queries, batch.labels, self._read)

    def study(self, batch: Batch, config: SelfStudyConfig) -> Batch:
        """Return the batch with texts that this model writes about its contexts as further queries (self-study, Cartridges,
        arXiv 2506.06266).

        They follow from the contexts and the seed of the training alone, so that a resumed one sees the same. Their own tokens
        are labelled, not those of their prompts, nor the `answer` that is put between a text and the answer to it.

        Raises:
            PositionsExceeded: a context fills the model's positions.
        """
        tokenizer, ids = self._backbone.tokenizer, self._context.ids
        seed = zlib.crc32(ids.cpu().numpy().tobytes()) ^ self._memory.config.seed
        prompts = [tokenizer.encode(prompt) for prompt in config.prompts]
        texts = [
            _Text().given(prompts[number % len(prompts)])
            for _ in range(len(ids))
            for number in range(seed, seed + config.texts)
        ]
        options = {
            "max_new_tokens": config.length,
            "do_sample": True,
            "temperature": config.temperature,
            "top_k": 0,
        }
        devices = [ids.device] if ids.device.type == "cuda" else []
        with self._teaching(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            texts = self._continued(texts, options)
            if config.answer is not None:
                answer = tokenizer.encode(config.answer)
                ended = [text.without(self._ends) for text in texts]
                texts = self._continued([text.given(answer) for text in ended], options)
        return _beside(batch, texts)

    def _visible(self) -> Conditioning:
        return Conditioning(key_values=self._read.key_values)

    @property
    def _ends(self) -> tuple[int, ...]:
        info = self._backbone.info
        return info.end_ids or (info.eos_id,)

    def _continued(self, texts: list[_Text], options: Mapping[str, Any]) -> list[_Text]:
        """Return as many texts for each context, with what the model writes behind them up to its first end token, which is
        included.
        """
        rows = len(self._context.ids)
        asked = Tokens.from_rows([text.ids for text in texts], self._context.ids.device)
        asked = asked.map(lambda tensor: tensor.reshape(rows, len(texts) // rows, -1))
        new = generate(self._backbone, self._visible(), asked, options, self._read).tolist()
        stops = [
            next((n for n, i in enumerate(row, 1) if i in self._ends), len(row)) for row in new
        ]
        return [text.written(row[:stop]) for text, row, stop in zip(texts, new, stops, strict=True)]


@dataclass(frozen=True)
class _Text:
    """A text as it grows, with labels for what the teacher wrote itself."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def given(self, ids: list[int]) -> _Text:
        return _Text([*self.ids, *ids], [*self.labels, *[IGNORED] * len(ids)])

    def written(self, ids: list[int]) -> _Text:
        return _Text([*self.ids, *ids], [*self.labels, *ids])

    def without(self, ends: Sequence[int]) -> _Text:
        """Return the text without an end token behind it."""
        return _Text(self.ids[:-1], self.labels[:-1]) if self.ids[-1] in ends else self


def _beside(batch: Batch, texts: list[_Text]) -> Batch:
    """Put B · n texts beside the queries of B contexts."""
    rows, width = batch.queries.ids.shape[0], batch.queries.ids.shape[-1]
    written = Tokens.from_rows([text.ids for text in texts])
    labels = torch.full_like(written.ids, IGNORED)
    for row, text in enumerate(texts):
        labels[row, : len(text.labels)] = torch.tensor(text.labels)
    longest = max(width, written.ids.shape[1])

    def joined(old: Tensor, new: Tensor, value: int) -> Tensor:
        old = old.reshape(rows, -1, width)
        new = new.to(old.device).reshape(rows, -1, new.shape[-1])
        return torch.cat([F.pad(t, (0, longest - t.shape[-1]), value=value) for t in (old, new)], 1)

    queries = Tokens(
        joined(batch.queries.ids, written.ids, 0), joined(batch.queries.mask, written.mask, False)
    )
    return Batch(batch.context, queries, joined(batch.labels, labels, IGNORED))
