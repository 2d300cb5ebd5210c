"""The one configuration of generation: made of the caller's options alone, whatever a model's folder recommends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from memwrite.errors import ConfigError, InputError, did_you_mean
from memwrite.protocols import KeyValues

#: Options that mean the same with a memory as without one.
OPTIONS = frozenset(
    {
        "max_new_tokens", "min_new_tokens", "max_time", "do_sample", "num_beams", "early_stopping", "length_penalty",
        "num_return_sequences", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff",
        "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias",
        "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "exponential_decay_length_penalty",
        "renormalize_logits", "remove_invalid_values",
    }
)  # fmt: skip
#: Arguments of transformers' `generate` that are objects and no part of a configuration.
ARGUMENTS = frozenset(
    {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"}
)
# What a caller says of length and number, whatever is recommended.
_OWN = frozenset({"max_new_tokens", "min_new_tokens", "max_time", "num_return_sequences"})

_INSTEAD = {
    "max_length": "use max_new_tokens",
    "min_length": "use min_new_tokens",
    "eos_token_id": "every end token of the model ends an answer",
    "pad_token_id": "rows are filled up with the end token",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of `generate` that a memory cannot honour.

    Raises:
        InputError: there is one.
    """
    for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
        count = options.get(name)
        if count is not None and (type(count) is not int or count < 1):
            raise InputError(f"{name} must be a whole number of at least 1, got {count!r}")
    known = OPTIONS | ARGUMENTS | {"cache_implementation", "use_cache", "recommended"}
    for name, value in options.items():
        if name == "use_cache" and value is not True:
            raise InputError(
                f"use_cache={value!r} is not possible: a memory lives in the cache, so leave the option out"
            )
        if name in known:
            continue
        instead = _INSTEAD.get(name) or did_you_mean(name, sorted(known))
        raise InputError(f"'{name}' is no option of generation with a memory: {instead}")


def generation_config(
    options: Mapping[str, Any], end_ids: tuple[int, ...], pad_id: int
) -> GenerationConfig:
    """Return transformers' configuration of one call.

    Args:
        options: checked options.
        end_ids: each of these tokens ends a row.
        pad_id: what stands behind the end.

    Raises:
        InputError: a value is impossible.
    """
    chosen = {name: value for name, value in options.items() if name in OPTIONS}
    try:
        config = GenerationConfig(
            **{"do_sample": False, **chosen},
            use_cache=True,
            eos_token_id=list(end_ids),
            pad_token_id=pad_id,
        )
        config.validate()
    except (TypeError, ValueError) as error:
        raise refused(error) from None
    return config


def copies(options: Mapping[str, Any]) -> int:
    """Return how many rows `generate` makes of each that it is handed: its beams or samples."""
    beams = int(options.get("num_beams") or 1)
    if beams == 1 or options.get("do_sample"):
        return max(beams, int(options.get("num_return_sequences") or 1))
    return beams


def inputs(ids: Tensor, past: KeyValues | None, last: Tensor | None) -> dict[str, Tensor]:
    """Return the arguments of `generate` that hold tokens, their mask and their positions.

    Args:
        ids: (B, T), without padding.
        past: what the rows have read before.
        last: (B, 1, D), the embeddings of one slot that stands in for the ids where T = 0.
    """
    batch, length = ids.shape
    mask = torch.ones(batch, length or 1, dtype=torch.bool, device=ids.device)
    positions = torch.arange(length or 1, device=ids.device).expand(batch, -1)
    if past is not None:
        mask = torch.cat([past.mask, mask], 1)
        positions = positions + past.next_position[:, None]
    tokens = {"input_ids": ids}
    if last is not None:
        # Embeddings are expected for the cached part too, and cut off unread.
        blank = last.new_zeros(batch, mask.shape[1] - 1, last.shape[-1])
        tokens = {"inputs_embeds": torch.cat([blank, last], 1)}
    return {**tokens, "attention_mask": mask.long(), "position_ids": positions}


@contextmanager
def refusing() -> Iterator[None]:
    """Turn transformers' complaints about options, while it generates, into one sentence."""
    try:
        yield
    except (InputError, ConfigError):
        raise
    except ValueError as error:
        raise refused(error) from None


@contextmanager
def one_product(head: nn.Module) -> Iterator[None]:
    """Hand the vocabulary head whole tensors: of part of a sequence torch would copy its weight for every row."""
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def refused(error: Exception) -> InputError:
    """Return the one-sentence form of transformers' complaint about options."""
    return InputError(f"the options of generation are refused: {' '.join(str(error).split())}")


def strip_recommendations(model: Any) -> dict[str, Any]:
    """Leave of a model's own generation configuration the tokens that end its turns, and return its other options.

    transformers fills every option that a caller leaves open with the model's recommendation.
    """
    recommended = {
        name: value
        for name, value in model.generation_config.to_diff_dict().items()
        if name in OPTIONS - _OWN
    }
    model.generation_config = GenerationConfig(
        eos_token_id=getattr(model.generation_config, "eos_token_id", None)
    )
    return recommended


class TextStream:
    """A streamer for transformers' `generate` that hands on the text of one answer as it grows.

    Args:
        decode: gives the text of ids.
        ends: tokens that end the answer.
        receive: is called with every new piece; joined they are the answer.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends: tuple[int, ...],
        receive: Callable[[str], object],
    ) -> None:
        self._decode, self._ends, self._receive = decode, ends, receive
        self._ids: list[int] = []
        self._sent = ""
        self._begun = False

    def put(self, ids: Tensor) -> None:
        """Take new tokens; the first call brings the prompt."""
        if self._begun:
            self._ids += ids.flatten().tolist()
            self._send(final=False)
        self._begun = True

    def end(self) -> None:
        """Hand on what is left."""
        self._send(final=True)

    def _send(self, final: bool) -> None:
        text = self._decode(text_of(self._ids, self._ends))
        # The last characters may come out otherwise with the next token.
        ready = text if final else text.rstrip("\ufffd")
        if ready.startswith(self._sent) and len(ready) > len(self._sent):
            self._receive(ready[len(self._sent) :])
            self._sent = ready


class RowStreams:
    """A streamer for several rows: each has a `TextStream` of its own, or None.

    `rows` gives the streamer of the rows that are generated together.
    """

    def __init__(self, streams: Sequence[TextStream | None]) -> None:
        self._streams = streams

    def rows(self, index: Sequence[int]) -> RowStreams:
        """Return the streamer of these rows."""
        return RowStreams([self._streams[row] for row in index])

    def put(self, ids: Tensor) -> None:
        """Take a prompt (B, T) or new tokens (B,)."""
        for stream, row in zip(self._streams, ids, strict=True):
            if stream is not None:
                stream.put(row)

    def end(self) -> None:
        """Hand on what is left of every row."""
        for stream in self._streams:
            if stream is not None:
                stream.end()


def end_ids(model: Any, eos_id: int, end_of_turn: int | None) -> tuple[int, ...]:
    """Return every token that ends an answer: the tokenizer's end token first, then those that the model names, and
    the one with which its chat template closes an answer.

    Raises:
        ConfigError: the model names something that is no token id.
    """
    named = model.generation_config.eos_token_id
    named = [] if named is None else named if isinstance(named, (list, tuple)) else [named]
    for token in named:
        if type(token) is not int:
            raise ConfigError(
                f"the model's generation_config.json names the end token {token!r}, which is no token id"
            )
    known = (token for token in named if 0 <= token < model.config.vocab_size)
    turn = [] if end_of_turn is None else [end_of_turn]
    return tuple(dict.fromkeys([eos_id, *known, *turn]))


def until_end(row: list[int], ends: tuple[int, ...]) -> list[int]:
    """Return `row` up to and with its first end token."""
    for index, token in enumerate(row):
        if token in ends:
            return row[: index + 1]
    return row


def text_of(row: list[int], ends: tuple[int, ...]) -> list[int]:
    """Return what `row` says before its first end token."""
    kept = until_end(row, ends)
    return kept[:-1] if kept and kept[-1] in ends else kept
