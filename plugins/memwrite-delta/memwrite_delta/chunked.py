"""The scan in parallel over the tokens of a chunk, in plain torch, for any device.

In a chunk of C tokens that starts from the state S_0, for a row of S, with L the running sum of its log_keep,

    D_tj = exp(L_{t−1} − L_j) for j < t, else 0;    g_t = exp(L_{t−1});    h_t = exp(L_C − L_t)
    p_t = S_{t−1} k_t = g_t (S_0 k_t) + Σ_j D_tj (k_t · k_j) u_j;    u_t = write_t v_t − erase_t p_t

is a triangular system, (I + Diag(erase) (D ⊙ K Kᵀ)) u = write v − erase g (S_0 k), and the rest are products:

    read_t = g_t (S_0 q_t) + Σ_j D_tj (q_t · k_j) u_j;    S_C = exp(L_C) S_0 + Σ_j h_j u_j k_jᵀ

D, g and h are products of keep, never quotients, which a keep of 0 would break.

The adjoint goes from the last chunk to the first. With A_t the gradient of S_t, r_t that of read_t, a_t = A_t k_t that of
u_t, and sums over the rows of S:

    (I + Diag(erase) (D ⊙ K Kᵀ))ᵀ a = (D ⊙ Q Kᵀ)ᵀ r + h (A_C k)
    A_0 = exp(L_C) A_C + Σ_t g_t (r_t q_tᵀ − erase_t a_t k_tᵀ)
    queries: Σ g r S_0 + W K;    keys: Σ (h u A_C − g erase a S_0) + Wᵀ Q + (Z + Zᵀ) K
    with W = Σ D ⊙ (r uᵀ) and Z = −Σ D ⊙ ((erase a) uᵀ)
    values: write a;    write: v a;    erase: −p a;    log_keep: A_t · S_t − u_t a_t

A_t · S_t is known behind the last token, and grows by r_t read_t − write_t v_t a_t with each step back over a token t.

Shapes: N chunks; G = B H heads of all batch rows; R gates of a head, which is Dv where every row of S has its own and 1
where they share one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve_triangular
from torch.nn import functional as F

CHUNK = 32  # C; with more of them, D costs more than the steps from chunk to chunk that it saves
AT_ONCE = 256  # N G R, how many D exist at a time; more do not stay in the processor's cache


@dataclass(frozen=True)
class _Group:
    """N chunks, and the part of their computation that does not depend on the state.

    Attributes:
        queries: (N, G, C, Dk).
        keys: (N, G, C, Dk).
        written: write v, (N, G, Dv, C).
        erase: (N, G, R, C).
        between: (N, G, R, C, C), D where j < t.
        before: g, (N, G, R, C).
        behind: h, (N, G, R, C).
        keep: exp(L_C), (N, G, R, 1).
    """

    queries: Tensor
    keys: Tensor
    written: Tensor
    erase: Tensor
    between: Tensor
    before: Tensor
    behind: Tensor
    keep: Tensor

    def by_keys(self) -> Tensor:
        """Return D ⊙ K Kᵀ, (N, G, R, C, C)."""
        return self.between * (self.keys @ self.keys.mT).tril(-1)[:, :, None]

    def by_queries(self) -> Tensor:
        """Return D ⊙ Q Kᵀ, (N, G, R, C, C)."""
        return self.between * (self.queries @ self.keys.mT).tril(-1)[:, :, None]

    def system(self) -> Tensor:
        """Return Diag(erase) (D ⊙ K Kᵀ), (N, G, R, C, C)."""
        return self.erase[..., None] * self.by_keys()

    def paired(self, later: Tensor, earlier: Tensor) -> Tensor:
        """Return Σ D ⊙ (later earlierᵀ) of two (N, G, Dv, C), (N, G, C, C)."""
        later, earlier = _by_gate(later, self.between), _by_gate(earlier, self.between)
        # As a matrix product of inner dimension 1 it would take ten times as long.
        outer = later.mT * earlier if later.shape[3] == 1 else later.mT @ earlier
        return (self.between * outer).sum(2).tril(-1)


def forward(inputs: Sequence[Tensor], save: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """See `memwrite_delta.scan.Algorithm`."""
    *tokens, state = inputs
    running = state.flatten(0, 1)
    reads, saved = [], []
    for part in _split(_together(tokens), *tokens):
        group = _prepare(*part)
        states, updates, running = _run(group, running)
        from_start = group.before * (states @ group.queries.mT)
        reads.append(from_start + _times(updates, group.by_queries().mT))
        saved += [(states, updates)] if save else []
    read, after = _tokens(reads, tokens[2]), running.view_as(state)
    return read, after, (*map(torch.cat, zip(*saved, strict=True)), read, after) if save else ()


def backward(
    inputs: Sequence[Tensor], saved: Sequence[Tensor], grad_reads: Tensor, grad_state: Tensor
) -> tuple[Tensor, ...]:
    """See `memwrite_delta.scan.Algorithm`."""
    queries, keys, values, log_keep, erase, write, _ = inputs
    states, updates, reads, after = saved
    adjoint = grad_state.flatten(0, 1)
    together = _together(inputs[:6])
    parts = []
    for (*part, grad), before, update in zip(
        reversed(list(_split(together, *inputs[:6], grad_reads))),
        reversed(torch.split(states, together)),
        reversed(torch.split(updates, together)),
        strict=True,
    ):
        group = _prepare(*part)
        grad = _chunks(grad)
        adjoints, pulls, adjoint = _run_back(group, grad, adjoint)
        parts.append(_gradients(group, before, update, grad, adjoints, pulls))
    columns = zip(*reversed(parts), strict=True)
    grad_queries, grad_keys, pull, recalled = map(_tokens, columns, (queries, keys, values, values))
    written = write * pull
    growth = grad_reads * reads - written * values
    grown = growth.flip(1).cumsum(1).flip(1) - growth
    at_end = (grad_state * after).sum(-1)[:, None]
    grad_log_keep = at_end + grown - (write * values - erase * recalled) * pull
    return (
        grad_queries,
        grad_keys,
        written,
        grad_log_keep.sum_to_size(log_keep.shape),
        (-recalled * pull).sum_to_size(erase.shape),
        (values * pull).sum_to_size(write.shape),
        adjoint.view_as(grad_state),
    )


def _run(group: _Group, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Go from chunk to chunk and return S_0 of each (N, G, Dv, Dk), u (N, G, Dv, C), and the state (G, Dv, Dk) behind the last."""
    erased = group.erase * group.before
    parts = (group.keys, group.written, erased, group.behind, group.keep, group.system())
    states, updates = [], []
    for keys, written, erase, behind, keep, system in zip(*map(torch.unbind, parts), strict=True):
        right = torch.addcmul(written, erase, state @ keys.mT, value=-1)
        update = _solved(system, right, transposed=False)
        states.append(state)
        updates.append(update)
        state = torch.baddbmm(keep * state, behind * update, keys)
    return torch.stack(states), torch.stack(updates), state


def _run_back(group: _Group, grad: Tensor, adjoint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Go from the last chunk to the first and return A_C of each (N, G, Dv, Dk), a (N, G, Dv, C), and A_0 (G, Dv, Dk) of the first."""
    from_reads = _times(grad, group.by_queries())
    read = (group.before * grad) @ group.queries
    erased = group.erase * group.before
    parts = (group.keys, from_reads, read, erased, group.behind, group.keep, group.system())
    adjoints, pulls = [], []
    for step in zip(*(reversed(x.unbind()) for x in parts), strict=True):
        keys, right, read, erase, behind, keep, system = step
        right = torch.addcmul(right, behind, adjoint @ keys.mT)
        pull = _solved(system, right, transposed=True)
        adjoints.append(adjoint)
        pulls.append(pull)
        adjoint = torch.baddbmm(torch.addcmul(read, keep, adjoint), erase * pull, keys, alpha=-1)
    return torch.stack(adjoints[::-1]), torch.stack(pulls[::-1]), adjoint


def _gradients(
    group: _Group, states: Tensor, updates: Tensor, grad: Tensor, adjoints: Tensor, pulls: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries and keys (N, G, Dk, C), then a and p (N, G, Dv, C)."""
    erased = group.erase * pulls
    recalled = group.before * (states @ group.keys.mT) + _times(updates, group.by_keys().mT)
    w, z = group.paired(grad, updates), -group.paired(erased, updates)
    grad_queries = states.mT @ (group.before * grad) + group.keys.mT @ w.mT
    grad_keys = (
        adjoints.mT @ (group.behind * updates)
        - states.mT @ (group.before * erased)
        + group.queries.mT @ w
        + group.keys.mT @ (z + z.mT)
    )
    return grad_queries, grad_keys, pulls, recalled


def _prepare(
    queries: Tensor, keys: Tensor, values: Tensor, log_keep: Tensor, erase: Tensor, write: Tensor
) -> _Group:
    """Make the chunks of inputs (B, T, H, D)."""
    gates = (log_keep, erase, write)
    width = max(gate.shape[-1] for gate in gates)
    log_keep, erase, write = (_chunks(gate.expand(-1, -1, -1, width)) for gate in gates)
    decay = _decay(log_keep.exp())
    return _Group(
        queries=_chunks(queries).mT.contiguous(),
        keys=_chunks(keys).mT.contiguous(),
        written=write * _chunks(values),
        erase=erase,
        between=decay[..., :-1, 1:],
        before=decay[..., :-1, 0],
        behind=decay[..., -1, 1:],
        keep=decay[..., -1, :1],
    )


def _decay(keep: Tensor) -> Tensor:
    """Return products of `keep` (..., C), (..., C + 1, C + 1): in row t and column s those of s <= i < t; for s > t, ones."""
    decay = keep.new_ones(*keep.shape[:-1], CHUNK + 1, CHUNK + 1)
    for t in range(CHUNK):
        decay[..., t + 1, : t + 1] = decay[..., t, : t + 1] * keep[..., t, None]
    return decay


def _by_gate(x: Tensor, like: Tensor) -> Tensor:
    """Split (..., G, Dv, C) into (..., G, R, Dv / R, C), with the R of (..., G, R, C, C)."""
    return torch.unflatten(x, -2, (like.shape[-3], -1))


def _times(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply rows (N, G, Dv, C) by the matrices (N, G, R, C, C) of their gates."""
    return (_by_gate(x, matrices) @ matrices).flatten(-3, -2)


def _solved(system: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """Solve (I + system) x = right, or its transpose, for x: for rows (G, Dv, C), with their gates' (G, R, C, C)."""
    columns = _by_gate(right, system).mT
    system = system.mT if transposed else system
    x: Tensor = solve_triangular(system, columns, upper=transposed, unitriangular=True)
    return x.mT.flatten(-3, -2)


def _together(tokens: Sequence[Tensor]) -> int:
    """Return N, the number of chunks in each group that these inputs make."""
    batch, _, heads, _ = tokens[0].shape
    gates = max(gate.shape[-1] for gate in tokens[3:])
    return max(1, AT_ONCE // max(1, batch * heads * gates))


def _split(chunks: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split (B, T, ...) into the tokens of so many chunks at a time."""
    return zip(*(torch.split(x, CHUNK * chunks, 1) for x in tensors), strict=True)


def _chunks(x: Tensor) -> Tensor:
    """Reshape (B, T, H, D) to (N, G, D, C); the last chunk is filled up with zeros, which do nothing."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % CHUNK))
    x = torch.unflatten(x, 1, (-1, CHUNK))
    return x.permute(1, 0, 3, 4, 2).flatten(1, 2).contiguous()


def _tokens(chunks: Sequence[Tensor], like: Tensor) -> Tensor:
    """Join several (N, G, D, C) into (B, T, H, D), with the B, T and H of `like`."""
    batch, length, heads, _ = like.shape
    x = torch.unflatten(torch.cat(tuple(chunks)), 1, (batch, heads))
    return x.permute(1, 0, 4, 2, 3).flatten(1, 2)[:, :length]
