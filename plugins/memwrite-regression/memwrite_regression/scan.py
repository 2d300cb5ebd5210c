"""The scan of a regression that is read while it is written: T pairs, and a read before each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memwrite_regression import naive
from memwrite_regression.kind import solve, symmetric
from memwrite_regression.linear import Fading, chunked, joined

CHUNK = 32  # C of conjugate gradients
EXACT_CHUNK = 16  # C of exact reads
AT_ONCE = 2**22  # how many numbers of G exist at a time, where reads are exact
SEGMENT = 1024  # tokens whose chunks' S and G exist at a time; a backward pass computes them again


@dataclass(frozen=True)
class Solver:
    """How (G + Λ) x = q is solved for every token: exactly where `iterations` is None, else by conjugate gradients."""

    iterations: int | None = None

    def chunk(self, length: int) -> int:
        """Return the number of tokens that are computed together, of so many."""
        return min(length, EXACT_CHUNK if self.iterations is None else CHUNK)


EXACT = Solver()


def scan(
    queries: Tensor | None,
    keys: Tensor,
    values: Tensor,
    log_keep: Tensor,
    weight: Tensor,
    ridge: Tensor,
    state: Tensor,
    gram: Tensor,
    solver: Solver = EXACT,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read and write T tokens, every head of every row on its own (Mesa layer, arXiv 2506.05233):

        read_t = S_{t−1} (G_{t−1} + Λ)⁻¹ q_t
        S_t = γ_t S_{t−1} + β_t v_t k_tᵀ,    G_t = γ_t G_{t−1} + β_t k_t k_tᵀ

    It is computed in float64. The paper reads behind the write; here, as for every memory that is read online, a token
    asks what was known before it. Gradients are those of the exact solution, by implicit differentiation; gradients of
    gradients are right too, but as slow as the oracle.

    Args:
        queries: (B, T, H, Dk), or None to write only.
        keys: (B, T, H, Dk).
        values: (B, T, H, Dv).
        log_keep: log γ (B, T, H), at most 0, and −inf is allowed.
        weight: β (B, T, H), not negative.
        ridge: the diagonal of Λ (B, H, Dk), positive.
        state: S (B, H, Dv, Dk). It is not changed.
        gram: G (B, H, Dk, Dk), symmetric. It is not changed.
        solver: of the reads.

    Returns:
        Reads (B, T, H, Dv), with T = 0 if there are no queries, and the new S and G, all of `state`'s dtype.
    """
    # exp(−800) is 0, and differences of sums of it are numbers, as those of sums of −inf are not.
    log_keep = log_keep.double().clamp(min=-800)
    tokens = [keys.double(), values.double(), log_keep, weight.double()]
    ridge, after, grams = ridge.double(), state.double(), symmetric(gram.double())
    reads = [tokens[1][:, :0]]
    if queries is None:
        after, grams = _written(tokens, after, grams)
    else:
        asked = queries.double()
        for start in range(0, keys.shape[1], SEGMENT):
            part = (x[:, start : start + SEGMENT] for x in (asked, *tokens))
            read, after, grams = _Scan.apply(solver, *part, ridge, after, grams)  # type: ignore[no-untyped-call]
            reads.append(read)
    return torch.cat(reads, 1).to(state.dtype), after.to(state.dtype), grams.to(state.dtype)


def _written(tokens: Sequence[Tensor], state: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return S and G behind the last token, of keys, values, log γ and β."""
    keys, values, log_keep, weight = tokens
    left = log_keep.flip(1).cumsum(1).flip(1)
    weighted = ((left - log_keep).exp() * weight)[..., None] * keys
    keep = log_keep.sum(1).exp()[..., None, None]
    return (
        keep * state + torch.einsum("bthv,bthk->bhvk", values, weighted),
        keep * gram + torch.einsum("bthj,bthk->bhjk", keys, weighted),
    )


class _Scan(torch.autograd.Function):
    """The scan with its adjoint. For a read r = S x with (G + Λ) x = q and its gradient a,

        (G + Λ) y = Sᵀ a;    q gets y,    S gets a xᵀ,    G gets −y xᵀ,    Λ the diagonal of that

    and what keys, values and gates get of these is what they get in a·(S x) − y·(G x), with a, x and y held fast.
    """

    @staticmethod
    def forward(ctx: Any, solver: Solver, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, *others = inputs
        length = queries.shape[1]
        size = solver.chunk(length)
        parts = _Parts(*others, size=size)
        asked = parts.solved(chunked(queries, size), solver)
        ctx.solver = solver
        ctx.save_for_backward(*inputs, asked)
        return joined(parts.reads(asked), length), parts.after, parts.gram_after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, asked = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_differentiable(inputs, grads)
        length = inputs[0].shape[1]
        size = ctx.solver.chunk(length)
        pulled = chunked(grads[0], size)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs[1:]]
            parts = _Parts(*leaves, size=size)
            with torch.no_grad():
                answer = parts.solved(parts.transposed_reads(pulled), ctx.solver)
            system = parts.system(asked)
            fixed = (pulled * parts.reads(asked)).sum() - (answer * system).sum()
            ends = (grads[1] * parts.after).sum() + (grads[2] * parts.gram_after).sum()
            found = torch.autograd.grad(fixed + ends, leaves)
        return None, joined(answer, length), *found


class _Parts:
    """Chunks of tokens and the sums before each, ready to be multiplied and solved.

    Args:
        keys, values, log_keep, weight, ridge, state, gram: as in `scan`.
        size: C.

    Attributes:
        after: S behind the last token.
        gram_after: G likewise.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        log_keep: Tensor,
        weight: Tensor,
        ridge: Tensor,
        state: Tensor,
        gram: Tensor,
        *,
        size: int,
    ) -> None:
        self._keys, self._values = chunked(keys, size), chunked(values, size)
        self._fading = Fading(chunked(log_keep, size), chunked(weight, size))
        self._states, self.after = self._fading.states(self._keys, self._values, state)
        self._grams, self.gram_after = self._fading.states(self._keys, self._keys, gram)
        self._ridge = ridge[:, :, None, None]

    def reads(self, asked: Tensor) -> Tensor:
        """Return S x."""
        return self._fading.times(self._keys, self._values, self._states, asked)

    def transposed_reads(self, answers: Tensor) -> Tensor:
        """Return Sᵀ a."""
        return self._fading.times(self._values, self._keys, self._states.mT, answers)

    def system(self, asked: Tensor) -> Tensor:
        """Return (G + Λ) x."""
        product = self._fading.times(self._keys, self._keys, self._grams, asked)
        return product + self._ridge * asked

    def solved(self, right: Tensor, solver: Solver) -> Tensor:
        """Return (G + Λ)⁻¹ of the right sides (B, H, N, C, Dk)."""
        if solver.iterations is None:
            return self._factorised(right)
        return self._descended(right, solver.iterations)

    def _factorised(self, right: Tensor) -> Tensor:
        """Solve by a Cholesky factorisation for each token, of a group of chunks at a time."""
        batch, heads, count, size, width = right.shape
        together = max(1, AT_ONCE // (batch * heads * size * width * width))
        solved = []
        for start in range(0, count, together):
            group = slice(start, start + together)
            grams = self._fading.each(self._keys, self._keys, self._grams, group)
            grams.diagonal(dim1=-2, dim2=-1).add_(self._ridge)
            solved.append(solve(grams, right[:, :, group, :, :, None])[..., 0])
        return torch.cat(solved, 2)

    def _descended(self, right: Tensor, iterations: int) -> Tensor:
        """Solve by conjugate gradients from 0 (Hestenes and Stiefel 1952), for all tokens at once."""
        solution, residual, direction = torch.zeros_like(right), right, right
        size = (residual * residual).sum(-1, keepdim=True)
        for _ in range(iterations):
            image = self.system(direction)
            step = _ratio(size, (direction * image).sum(-1, keepdim=True))
            solution = solution + step * direction
            residual = residual - step * image
            before, size = size, (residual * residual).sum(-1, keepdim=True)
            direction = residual + _ratio(size, before) * direction
        return solution


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide, with 0 for 0/0: where nothing is left to solve."""
    return above / torch.where(below > 0, below, 1)


def _differentiable(inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Iterator[Tensor | None]:
    """Return gradients that can be differentiated in turn, by autograd's graph of the oracle."""
    leaves = [x for x in inputs if x.requires_grad]
    gradients = iter(torch.autograd.grad(naive.scan(*inputs), leaves, grads, create_graph=True))
    return (next(gradients) if x.requires_grad else None for x in inputs)
