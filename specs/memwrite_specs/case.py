"""A case that a law is tried on: a memory, drawn contexts, and comparisons that explain themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from memwrite.errors import PositionsExceeded
from memwrite.memory import Memory
from memwrite.state import MemoryState, PackedTokens, Tokens
from memwrite_specs.law import LawBroken, NotRun
from memwrite_specs.pair import Pair

T = TypeVar("T")

LONGEST = 9
QUESTION = [72, 105, 33]
IDS = 258

row = st.lists(st.integers(0, IDS - 1), min_size=1, max_size=LONGEST)


class Case:
    """One trial of a law.

    Args:
        pair: what is held to the law.
        seed: the seed of `rng`.
        draw: how values are drawn; None for laws that draw none.

    Attributes:
        pair: what is held to the law.
        rng: for laws that draw nothing by strategies; depends on the seed alone.
        drawn: everything drawn so far by its name, for the report of a failure.
    """

    def __init__(
        self, pair: Pair, seed: int, draw: Callable[[st.SearchStrategy[Any]], Any] | None = None
    ) -> None:
        self.pair = pair
        self.seed = seed
        self.rng = random.Random(seed)
        self.drawn: dict[str, object] = {}
        self._draw = draw

    @cached_property
    def memory(self) -> Memory:
        """Build the pair's memory in float64; all cases of a law share it."""
        return self.pair.memory()

    @property
    def tolerance(self) -> float:
        """Return the allowed difference, relative to the largest value if that is above 1."""
        return 1e-9 if self.pair.build.exact else 1e-4

    # ---- drawing -------------------------------------------------------------------------------

    def draw(self, name: str, strategy: st.SearchStrategy[T]) -> T:
        """Draw a value, and note it under `name`."""
        assert self._draw is not None, "a law that draws needs more than one example"
        value: T = self._draw(strategy)
        self.drawn[name] = value
        return value

    def lists(self, name: str = "context", rows: int | None = None) -> list[list[int]]:
        """Draw the token ids of contexts, each of at least one token: `rows` of them, or 2 to 5."""
        sizes = (2, 5) if rows is None else (rows, rows)
        return self.draw(name, st.lists(row, min_size=sizes[0], max_size=sizes[1]))

    def context(self, name: str = "context", rows: int | None = None) -> PackedTokens:
        """Draw contexts, see `lists`, as one batch of tokens."""
        return self.tokens(self.lists(name, rows))

    def tokens(self, rows: list[list[int]]) -> PackedTokens:
        """Pad `rows` at the right; every third token begins a segment, for a writer that writes segments."""
        tokens = Tokens.from_rows(rows)
        if self.memory.granularity == "token":
            return tokens
        place = torch.arange(tokens.ids.shape[1]) // 3
        return PackedTokens(tokens.ids, tokens.mask, place.expand_as(tokens.ids).contiguous())

    @staticmethod
    def question(rows: int) -> Tokens:
        """Return the same short query for every row."""
        return Tokens.from_rows([QUESTION] * rows)

    def secret(self, length: int) -> list[int]:
        """Return random letters, for laws that draw nothing."""
        letters = [*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]
        return self.rng.choices(letters, k=length)

    # ---- doing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def write(self, context: Tokens, state: MemoryState | None = None) -> MemoryState:
        """Write through the core, and return the state."""
        return self.memory.write(context, state).state

    @torch.no_grad()
    def read(self, state: MemoryState, query: Tokens | None = None) -> Tensor:
        """Return the logits (B, T, V) of a query given the state, by default of a short one."""
        if query is None:
            query = self.question(state.batch_size or 1)
        return self.memory.read(state, query).logits

    @staticmethod
    def within_positions(attempt: Callable[[int], T], longest: int, shortest: int = 1) -> T:
        """Return `attempt(longest)` or, where the model runs out of positions, that of half the length, and so on.

        A state of keys and values may take new positions with every write, so that nobody knows beforehand what fits.

        Raises:
            NotRun: not even `shortest` fits.
        """
        length = longest
        while True:
            try:
                return attempt(length)
            except PositionsExceeded as error:
                if length // 2 < shortest:
                    raise NotRun(f"it takes more positions than the model has: {error}") from None
            length //= 2

    # ---- comparing -----------------------------------------------------------------------------

    def require(self, fine: bool, sentence: str) -> None:
        """Raise LawBroken with `sentence` unless `fine`."""
        if not fine:
            raise LawBroken(sentence)

    def same(self, what: str, found: MemoryState | Tensor, expected: MemoryState | Tensor) -> None:
        """Raise LawBroken unless both agree within the tolerance; `what` names them in the message."""
        if isinstance(found, MemoryState) and isinstance(expected, MemoryState):
            if found.spec != expected.spec:
                raise LawBroken(f"{what}: {found.spec} instead of {expected.spec}")
            for name in expected.tensors:
                self.same(f"{what} ('{name}')", found[name], expected[name])
            return
        assert isinstance(found, Tensor)
        assert isinstance(expected, Tensor)
        if found.shape != expected.shape:
            raise LawBroken(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
        gap = difference(found, expected)
        allowed = self.tolerance * max(1.0, _largest(expected))
        if not gap <= allowed:
            raise LawBroken(f"{what}: differs by up to {gap:.3g}, allowed is {allowed:.1g}")

    def differ(self, found: MemoryState, expected: MemoryState) -> bool:
        """Say whether the states differ by more than rounding."""
        if found.spec != expected.spec:
            return True
        return any(
            difference(found[name], expected[name])
            > self.tolerance * max(1e-3, _largest(expected[name]))
            for name in expected.tensors
        )


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors; values that are equally non-finite in both do not differ."""
    found, expected = found.detach().double(), expected.detach().double()
    gap = torch.where((found == expected) | (found.isnan() & expected.isnan()), 0, found - expected)
    return float(gap.abs().max()) if gap.numel() else 0.0


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0
