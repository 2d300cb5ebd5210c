"""A memory as the harness's language model: each context is written once, and all its questions are asked of the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional

from memwrite import Memory
from memwrite.backbones.generation import text_of
from memwrite.backbones.segmentation import batch_segments
from memwrite.backbones.tokenizers import TransformersTokenizer
from memwrite.errors import InputError
from memwrite.evaluation.controls import evaluation_mode
from memwrite.protocols import IGNORED
from memwrite.state import MemoryState, Tokens
from memwrite.utils.progress import track
from memwrite_lm_eval.splitting import context_end
from memwrite_lm_eval.stopping import StopStrings
from memwrite_lm_eval.tokens import PromptTokenizer

T = TypeVar("T")

#: Tokens of an answer where a task says nothing, as in the harness's own models.
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class _Request:
    """One request of the harness.

    Attributes:
        number: its place among the requests.
        written: ids of what is written before it is asked, in segments; none where there is no context.
        asked: ids behind the memory, at least one.
        scored: ids whose likelihood behind those is wanted; none where an answer is to be generated.
        options: of generation.
    """

    number: int
    written: list[list[int]]
    asked: list[int]
    scored: list[int] = field(default_factory=list)
    options: Mapping[str, Any] = field(default_factory=dict)


class MemoryLM(LM):  # type: ignore[misc]
    """Answers the harness's requests from memories: a prompt's context is written, and the rest of it is asked.

    Written and asked together are the prompt, token by token, as the harness gives it to any model; see `context_end` for
    where it is cut. Nothing is ever cut off a prompt that is long. A text without a context, as a task of perplexity has it, is
    asked of a memory that has read nothing.

    Args:
        memory: writes and answers, in evaluation mode.
        batch_size: contexts that are written together, and questions that are asked together.
        context_field: the field of a task's documents that holds the context; see `context_end`.

    Attributes:
        written: how many contexts have been written.
        asked: how many questions have been asked.

    Raises:
        InputError: the tokenizer does not say where in a text its tokens stand.
        ValueError: the batch size is below 1.
    """

    def __init__(
        self, memory: Memory, batch_size: int = 8, context_field: str | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.memory, self.batch_size, self.context_field = memory, batch_size, context_field
        self._device = memory.backbone.info.device
        self._tokens = PromptTokenizer(memory.backbone.tokenizer, memory.granularity)
        self.written = self.asked = 0

    # What the harness calls.

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each (prompt, continuation) its log-likelihood, and whether greedy decoding would give it."""
        found = self._answer(
            [self._scored(number, each) for number, each in enumerate(requests)], self._score
        )
        return self._remembered("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return for each (text,) the log-likelihood of the whole text, from a memory that has read nothing.

        A text longer than the model's positions is scored in windows of one token less, as the harness cuts them.
        """
        owners: list[int] = []
        windows: list[_Request] = []
        room = self._room()
        for owner, each in enumerate(requests):
            ids = self._tokens.ids(each.args[0])
            first = self.memory.backbone.info.bos_id
            for window in get_rolling_token_windows(ids, first, room, 1):
                asked, scored = make_disjoint_window(window)
                owners.append(owner)
                windows.append(_Request(len(windows), [], asked, scored))
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._answer(windows, self._score), strict=True):
            totals[owner] += score
        return self._remembered("loglikelihood_rolling", requests, totals)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return for each (prompt, options) what is generated behind it, up to the first stop string."""
        found = self._answer(
            [self._generated(number, each) for number, each in enumerate(requests)], self._generate
        )
        return self._remembered("generate_until", requests, found)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as the text that the tokenizer's chat template makes of them."""
        text: str = self._templated.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's chat template, if one is to be applied."""
        template: str = self._templated.get_chat_template() if chat_template else ""
        return template or None

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps what it made of prompts."""
        return str(self._templated.name_or_path).replace("/", "__")

    # From requests to tokens.

    @property
    def _templated(self) -> Any:
        tokenizer = self.memory.backbone.tokenizer
        if not isinstance(tokenizer, TransformersTokenizer) or not tokenizer.has_template:
            raise InputError("this model has no chat template: leave --apply-chat-template out")
        return tokenizer.wrapped

    def _end(self, prompt: str, request: Instance) -> int:
        task = str(request.task_name)
        return min(context_end(prompt, request.doc, task, self.context_field), len(prompt.rstrip()))

    def _scored(self, number: int, request: Instance) -> _Request:
        given, continuation = request.args
        # White space belongs to what follows it, as tokenizers have it.
        prompt = given.rstrip()
        if not prompt:
            first = self.memory.backbone.info.bos_id
            ids = self._tokens.ids(given + continuation, opened=False)
            return _Request(number, [], [first], ids[1:] if ids[:1] == [first] else ids)
        written, asked = self._tokens.cut(prompt, self._end(prompt, request))
        length = sum(map(len, written)) + len(asked)
        scored = self._tokens.ids(given + continuation)[length:]
        return _Request(number, written, asked, scored)

    def _generated(self, number: int, request: Instance) -> _Request:
        prompt, options = request.args
        written, asked = self._tokens.cut(prompt, self._end(prompt, request))
        return _Request(number, written, asked, options=options)

    def _room(self) -> int:
        """Return how many positions a memory that has read nothing leaves of the model's, less one."""
        state = self.memory.writer.init(1)
        conditioning = self.memory.condition(state)
        past = conditioning.key_values
        used = conditioning.longest_prefix + (0 if past is None else int(past.next_position.max()))
        return self.memory.backbone.info.positions - used - 1

    # From tokens to answers.

    def _answer(
        self,
        requests: Sequence[_Request],
        ask: Callable[[MemoryState, Sequence[_Request]], list[T]],
    ) -> list[T]:
        """Return the answers to all requests, in order; those of one context share its state."""
        groups: dict[tuple[tuple[int, ...], ...], list[_Request]] = {}
        for request in requests:
            groups.setdefault(tuple(map(tuple, request.written)), []).append(request)
        # The longest first: what does not fit is found out at once.
        asked = sorted(groups.values(), key=lambda group: -_length(group[0]))
        found: dict[int, T] = {}
        with evaluation_mode(self.memory):
            for batch in track([*_parts(asked, self.batch_size)], "lm-eval", "batch"):
                states = self._write([group[0].written for group in batch])
                pairs = [(row, each) for row, group in enumerate(batch) for each in group]
                for part in _parts(pairs, self.batch_size):
                    rows, questions = zip(*part, strict=True)
                    answers = ask(states.rows(torch.tensor(rows)), questions)
                    found |= zip((each.number for each in questions), answers, strict=True)
        self.asked += len(requests)
        return [found[number] for number in range(len(requests))]

    def _write(self, contexts: Sequence[list[list[int]]]) -> MemoryState:
        self.written += sum(map(bool, contexts))
        if not any(contexts):
            return self.memory.writer.init(len(contexts))
        tokens = batch_segments(contexts, self.memory.granularity, self.memory.backbone.info.device)
        return self.memory.write(tokens).state

    def _score(self, states: MemoryState, requests: Sequence[_Request]) -> list[tuple[float, bool]]:
        query = Tokens.from_rows([[*each.asked, *each.scored] for each in requests])
        labels = torch.full_like(query.ids, IGNORED)
        for row, each in enumerate(requests):
            start = len(each.asked)
            labels[row, start : start + len(each.scored)] = torch.tensor(each.scored)
        found = self.memory.predict(states, query, labels)
        own = functional.cross_entropy(found.logits, found.labels, reduction="none")
        right = found.logits.argmax(-1) == found.labels
        shape = query.ids.shape[:1]
        lost, hits = found.sums(own, shape).tolist(), found.sums(right.long(), shape).tolist()
        return [
            (-bits, hit == len(each.scored))
            for bits, hit, each in zip(lost, hits, requests, strict=True)
        ]

    def _generate(self, states: MemoryState, requests: Sequence[_Request]) -> list[str]:
        """Generate with the options of each, together where they are the same."""
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, each in enumerate(requests):
            groups.setdefault(repr(each.options), []).append(index)
        for indices in groups.values():
            answers = self._generate_alike(
                states.rows(torch.tensor(indices)), [requests[index] for index in indices]
            )
            for index, answer in zip(indices, answers, strict=True):
                found[index] = answer
        return found

    def _generate_alike(self, states: MemoryState, requests: Sequence[_Request]) -> list[str]:
        backbone = self.memory.backbone
        options = dict(normalize_gen_kwargs(dict(requests[0].options), MAX_NEW_TOKENS))
        stops = handle_stop_sequences(options.pop("until"), None)
        options["max_new_tokens"] = options.pop("max_gen_toks")
        if not options["do_sample"]:
            options.pop("temperature", None)
        if any(stops):
            ends = backbone.info.end_ids
            watching = StopStrings(backbone.tokenizer, ends, [*filter(None, stops)], len(requests))
            options |= {"streamer": watching, "stopping_criteria": [watching]}
        query = Tokens.from_rows([each.asked for each in requests])
        new = self.memory.generate(states, query, **options).tolist()
        texts = (backbone.tokenizer.decode(text_of(row, backbone.info.end_ids)) for row in new)
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _remembered(self, kind: str, requests: Sequence[Instance], found: list[T]) -> list[T]:
        """Hand the answers to the harness's cache of responses, if there is one."""
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found


def _length(request: _Request) -> int:
    return sum(map(len, request.written))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
