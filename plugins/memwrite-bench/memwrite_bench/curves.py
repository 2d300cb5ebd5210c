"""How much a memory holds, measured the same way for every mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory
from memwrite.backbones.tokenizers import ALPHABET
from memwrite.evaluation.key_value import evaluate
from memwrite.evaluation.scores import Scores, fano_bits, score
from memwrite.tasks.kv import KvConfig, KvTask

#: A memory without training: keys (B, N, Dk), values (B, N, Dv) -> S (B, Dv, Dk), read as S q. See `oracles`.
Rule = Callable[[Tensor, Tensor], Tensor]

_COLUMNS = ("pairs", "exact match", "95%", "set recall", "binding", "bits", "bits/float", "95%")


def state_size(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Numbers and bytes of a state per example, measured from its tensors.

    Args:
        tensors: each (B, ...), as `MemoryState.tensors.values()` or what a model's cache holds.

    Raises:
        ValueError: they disagree about B, or B is 0.
    """
    held = list(tensors)
    rows = {tensor.shape[0] for tensor in held} or {1}
    if len(rows) > 1 or 0 in rows:
        raise ValueError(f"the tensors of a state have one batch size of at least 1, not {rows}")
    (count,) = rows
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return sum(tensor.numel() for tensor in held) // count, nbytes // count


@dataclass(frozen=True)
class Point:
    """What a mechanism recalls of so many pairs, all asked for; shares from 0 to 1.

    Attributes:
        pairs: N, at least 1.
        choices: values that each of them is drawn from, alike and independently.
        state_floats: numbers per state, measured.
        state_bytes: likewise.
        exact_match: answers that are right.
        interval: 95% confidence interval of exact_match; see `memwrite.evaluation.scores`.
        set_recall: answers that are a value of the same state, whatever its key.
        binding: of these, the share that is right; None if there are none. About 1/N says that values are
            held without their keys.
        bits: per state, a lower bound of what it holds: Fano's, errors spread evenly.
        bits_per_float: None for a state without numbers.
        bits_per_float_interval: at the ends of `interval`, as bits rise with exact match.
    """

    pairs: int
    choices: int
    state_floats: int
    state_bytes: int
    exact_match: float
    interval: tuple[float, float]
    set_recall: float
    binding: float | None
    bits: float
    bits_per_float: float | None
    bits_per_float_interval: tuple[float, float] | None

    @classmethod
    def of(cls, scores: Scores, pairs: int, choices: int, size: tuple[int, int]) -> Point:
        """From the scores of the answers, as `memwrite.evaluation.scores.score` gives them.

        Args:
            scores: whose contexts are states.
            pairs: per state.
            choices: at least 2.
            size: numbers and bytes per state, see `state_size`.
        """
        floats, nbytes = size
        low, high = (pairs * fano_bits(share, choices) for share in scores.interval)
        bits = pairs * fano_bits(scores.exact_match, choices)
        return cls(
            pairs=pairs,
            choices=choices,
            state_floats=floats,
            state_bytes=nbytes,
            exact_match=scores.exact_match,
            interval=scores.interval,
            set_recall=scores.set_recall,
            binding=scores.binding,
            bits=bits,
            bits_per_float=bits / floats if floats else None,
            bits_per_float_interval=(low / floats, high / floats) if floats else None,
        )


@dataclass(frozen=True)
class Curve:
    """Recall of one mechanism against the number of pairs.

    Attributes:
        name: of the mechanism.
        points: in the order measured.
    """

    name: str
    points: tuple[Point, ...]

    def pairs_at(self, share: float) -> float | None:
        """The number of pairs at which exact match first falls to `share`, between two points on a straight line.

        None where no point at or above `share` is followed by one below it.
        """
        for before, after in pairwise(sorted(self.points, key=lambda point: point.pairs)):
            if before.exact_match >= share > after.exact_match:
                fallen = before.exact_match - share
                drop = before.exact_match - after.exact_match
                return before.pairs + (after.pairs - before.pairs) * fallen / drop
        return None

    def table(self) -> list[str]:
        """Lines of text: the name, the columns, and a row for each point."""
        rows = [_COLUMNS, *map(_cells, self.points)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [self.name, *("  ".join(map(str.rjust, row, widths)) for row in rows)]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def _cells(point: Point) -> tuple[str, ...]:
    rate, span = point.bits_per_float, point.bits_per_float_interval
    return (
        str(point.pairs),
        f"{point.exact_match:.1%}",
        "{:.1%} to {:.1%}".format(*point.interval),
        f"{point.set_recall:.1%}",
        "-" if point.binding is None else f"{point.binding:.1%}",
        f"{point.bits:.1f}",
        "-" if rate is None else f"{rate:.4f}",
        "-" if span is None else "{:.4f} to {:.4f}".format(*span),
    )


class Mechanism(Protocol):
    """Anything whose capacity can be measured."""

    def __call__(self, pairs: int, trials: int, seed: int, /) -> Point:
        """Write `trials` states of `pairs` random pairs each, ask for all of them and score the answers.

        The pairs depend on the arguments alone, so that mechanisms can be compared on the same ones.
        """
        ...


def measure(
    name: str, mechanism: Mechanism, pairs: Sequence[int], trials: int, seed: int = 0
) -> Curve:
    """The curve of any mechanism.

    Args:
        name: of the curve.
        mechanism: see there.
        pairs: numbers of pairs, each at least 1.
        trials: states per point; the confidence interval takes them for independent.
        seed: of the pairs.
    """
    return Curve(name, tuple(mechanism(count, trials, seed) for count in pairs))


@dataclass(frozen=True)
class LinearMechanism:
    """A linear associative memory on random codes, a `Mechanism`.

    Keys are independent random unit vectors, and so are the codes of the values, drawn anew in every trial;
    an answer is the value whose code has the largest product with S q.

    Attributes:
        rule: see `Rule`.
        width: Dk = Dv, at least 1.
        values: to draw from, at least 2.
        rewrites: rounds in which every key is written, in the same order, with other values; the last ones are
            asked for.
    """

    rule: Rule
    width: int
    values: int = 64
    rewrites: int = 1

    def __call__(self, pairs: int, trials: int, seed: int, /) -> Point:
        """See `Mechanism`."""
        draw = torch.Generator().manual_seed(seed)
        keys, codes = (self._codes(trials, count, draw) for count in (pairs, self.values))
        ids = torch.randint(self.values, (trials, self.rewrites, pairs), generator=draw)
        written = codes[torch.arange(trials)[:, None], ids.flatten(1)]
        state = self.rule(keys.repeat(1, self.rewrites, 1), written)
        decoded = (keys @ state.to(keys.dtype).mT @ codes.mT).argmax(-1, keepdim=True)
        scores = score(decoded, decoded, ids[:, -1, :, None])
        return Point.of(scores, pairs, self.values, state_size([state]))

    def _codes(self, trials: int, count: int, draw: torch.Generator) -> Tensor:
        shape = (trials, count, self.width)
        return F.normalize(torch.randn(shape, generator=draw, dtype=torch.float64), dim=-1)


@dataclass(frozen=True)
class MemoryMechanism:
    """A memory on the task kv-retrieval, a `Mechanism`: see `memwrite.evaluation.kv.evaluate`.

    Attributes:
        memory: trained or not.
        key_length: characters per key, at least 1.
        value_length: characters per value, at least 1.
    """

    memory: Memory
    key_length: int = 2
    value_length: int = 2

    def __call__(self, pairs: int, trials: int, seed: int, /) -> Point:
        """See `Mechanism`."""
        config = KvConfig(pairs, self.key_length, self.value_length)
        task = KvTask(config, self.memory.backbone.tokenizer)
        found = evaluate(self.memory, task.fresh(trials, seed))
        choices, size = len(ALPHABET) ** self.value_length, (found.state_floats, found.state_bytes)
        return Point.of(found.memory, pairs, choices, size)


def measure_linear(
    rule: Rule,
    width: int,
    pairs: Sequence[int],
    values: int = 64,
    trials: int = 64,
    seed: int = 0,
    rewrites: int = 1,
) -> Curve:
    """The curve of a linear memory, by the name of its rule; for the arguments see `LinearMechanism` and `measure`."""
    name = getattr(rule, "__name__", repr(rule))
    return measure(name, LinearMechanism(rule, width, values, rewrites), pairs, trials, seed)


def measure_memory(
    memory: Memory,
    pairs: Sequence[int],
    key_length: int = 2,
    value_length: int = 2,
    contexts: int = 64,
    seed: int = 0,
) -> Curve:
    """The curve of a memory, by the name of its writer; for the arguments see `MemoryMechanism` and `measure`.

    Raises:
        ConfigError: the tokenizer does not make one token of each character.
        ValueError: there are fewer than 2 contexts, or more pairs than keys.
    """
    mechanism = MemoryMechanism(memory, key_length, value_length)
    return measure(memory.config.writer.name, mechanism, pairs, contexts, seed)
