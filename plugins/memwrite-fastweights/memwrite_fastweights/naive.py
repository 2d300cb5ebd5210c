"""The oracles: one token after the other, with gradients by autograd, in loops a student can read.

Queries, keys and values are (B, T, H, D), gates (B, T, H); all rows are of the same length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Weights = dict[str, Tensor]


def recall(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return M(x) of a memory {"S"}, or {"W1", "W2"}, with matrices (B, H, n, m) and x (B, H, m)."""
    if "S" in weights:
        return _times(weights["S"], x)
    return _times(weights["W2"], F.gelu(_times(weights["W1"], x)))


def titans(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    momentum: Tensor,
    keep: Tensor,
    memory: Weights,
    surprise: Weights,
    start: Weights,
    count: int,
    chunk: int,
) -> tuple[Tensor, Weights, Weights, Weights]:
    """Write and read T tokens by Titans' rule, with θ, η and 1 − α.

    Args:
        queries: asked before each token is written.
        keys: what the memory receives.
        values: what it is to answer.
        step: θ.
        momentum: η.
        keep: 1 − α.
        memory: M.
        surprise: S.
        start: M at the start of the chunk.
        count: how many tokens of the chunk have been written.
        chunk: C.

    Returns:
        Reads (B, T, H, Dv), and the new M, S and start.
    """
    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        reads.append(recall(memory, queries[:, t])[:, None])
        error = lambda m, t=t: (recall(m, keys[:, t]) - values[:, t]).square().mean(-1)  # noqa: E731
        slope = gradient(error, start)
        surprise = {
            n: _each(momentum[:, t]) * s - _each(step[:, t]) * slope[n] for n, s in surprise.items()
        }
        memory = {n: _each(keep[:, t]) * m + surprise[n] for n, m in memory.items()}
        if (count + t + 1) % chunk == 0:
            start = memory
    return torch.cat(reads, 1), memory, surprise, start


def gradient(loss: Callable[[Weights], Tensor], weights: Weights) -> Weights:
    """Return the gradients of the losses (B, H) of all memories; they can be differentiated again."""
    with torch.enable_grad():
        leaves = {
            name: x if x.requires_grad else x.detach().requires_grad_()
            for name, x in weights.items()
        }
        found = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()), create_graph=True)
    return dict(zip(weights, found, strict=True))


def _times(weights: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bhmn,bhn->bhm", weights, x)


def _each(gate: Tensor) -> Tensor:
    """Shape a gate (B, H) to multiply matrices (B, H, m, n)."""
    return gate[..., None, None]


def _unit(slots: Tensor) -> Tensor:
    """Scale the columns of matrices to length 1."""
    return F.normalize(slots, dim=-2)


def lattice(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    memory: Weights,
    start: Weights,
    count: int,
    chunk: int,
) -> tuple[Tensor, Weights, Weights]:
    """Write and read T tokens by Lattice's rule, with θ; the projection comes of the slots' normalisation alone.

    Args:
        queries: asked before each token is written.
        keys: of each slot, how much it has to do with the token.
        values: what the slots are to reconstruct.
        step: θ.
        memory: S, of slots of length 1.
        start: S at the start of the chunk.
        count: how many tokens of the chunk have been written.
        chunk: C.

    Returns:
        Reads (B, T, H, Dv), and the new S and start.
    """
    reads, slots, first = [torch.zeros_like(values[:, :0])], memory["S"], _unit(start["S"])
    slots = slots / (first * slots).sum(-2, keepdim=True)
    for t in range(keys.shape[1]):
        reads.append(_times(_unit(slots), queries[:, t])[:, None])
        error = lambda m, t=t: (  # noqa: E731
            0.5 * (_times(_unit(m["S"]), keys[:, t]) - values[:, t]).square().sum(-1)
        )
        slots = slots - _each(step[:, t]) * gradient(error, {"S": first})["S"]
        if (count + t + 1) % chunk == 0:
            first = slots = _unit(slots)
            start = {"S": first}
    return torch.cat(reads, 1), {"S": _unit(slots)}, start


def ttt_recall(weights: Mapping[str, Tensor], scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """Return LN(f(x)) of TTT's networks, {"W", "b"} or {"W1", "b1", "W2", "b2"}, for x (B, H, D)."""
    if "W" in weights:
        y = _times(weights["W"], x) + weights["b"]
    else:
        inner = F.gelu(_times(weights["W1"], x) + weights["b1"], approximate="tanh")
        y = _times(weights["W2"], inner) + weights["b2"]
    return F.layer_norm(y, y.shape[-1:], eps=1e-6) * scale + shift


def ttt(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    tau: Tensor,
    start: Weights,
    gradients: Weights,
    scale: Tensor,
    shift: Tensor,
    count: int,
) -> tuple[Tensor, Weights, Weights]:
    """Write and read T tokens by TTT's rule, in mini-batches of as many tokens as τ is long.

    Args:
        queries: asked before each token is written.
        keys: what the network receives.
        values: v; it is to answer v − k.
        step: θ.
        tau: τ, the share of the summed gradients that is taken off after 1, 2, ... tokens.
        start: W at the start of the mini-batch.
        gradients: the sum of the mini-batch's gradients so far.
        scale: of the layer norm (B, H, D).
        shift: likewise.
        count: how many tokens of the mini-batch have been written.

    Returns:
        Reads (B, T, H, D), and the new start and gradients.
    """
    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        now = {n: w - tau[count - 1] * gradients[n] if count else w for n, w in start.items()}
        answer = queries[:, t] + ttt_recall(now, scale, shift, queries[:, t])
        reads.append(answer[:, None])
        target = values[:, t] - keys[:, t]

        def loss(w: Weights, key: Tensor = keys[:, t], target: Tensor = target) -> Tensor:
            return (ttt_recall(w, scale, shift, key) - target).square().sum(-1) / 2

        slope = gradient(loss, start)
        gradients = {
            n: g + step[:, t].reshape(*step[:, t].shape, *[1] * (g.ndim - 2)) * slope[n]
            for n, g in gradients.items()
        }
        count += 1
        if count == len(tau):
            start = {n: w - tau[-1] * gradients[n] for n, w in start.items()}
            gradients, count = {n: torch.zeros_like(g) for n, g in gradients.items()}, 0
    return torch.cat(reads, 1), start, gradients


def lact_recall(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return W1 (silu(W0 x) ⊙ W2 x) for x (B, H, Dk)."""
    return _times(weights["W1"], F.silu(_times(weights["W0"], x)) * _times(weights["W2"], x))


def lact(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rates: Tensor,
    momentum: Tensor,
    start: Weights,
    step: Weights,
    gradients: Weights,
    momenta: Tensor,
    lengths: Weights,
    count: int,
    chunk: int,
    change: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Weights, Weights, Weights, Weights, Tensor]:
    """Write and read T tokens by LaCT's rule.

    Args:
        queries: asked of the weights from the start of the chunk.
        keys: what the network receives.
        values: what its answers are drawn to.
        rates: lr of W0, W1 and W2 (B, T, H, 3).
        momentum: m.
        start: W at the start of the chunk.
        step: D, the step of the last chunk.
        gradients: the chunk's gradients so far.
        momenta: the sum of the chunk's m so far (B, H).
        lengths: of the weights' rows at first.
        count: how many tokens of the chunk have been written.
        chunk: C.
        change: what the weights change by, of D.

    Returns:
        Reads (B, T, H, Dv), what the unfinished chunk leads to, and the new start, step, gradients and momenta.
    """

    def changed() -> tuple[Weights, Weights]:
        mean = _each(momenta / count)
        steps = {n: g + mean * step[n] for n, g in gradients.items()}
        moved = {n: w + change(steps[n]) for n, w in start.items()}
        return {n: w / (_length(w) + 1e-5) * lengths[n] for n, w in moved.items()}, steps

    reads = [torch.zeros_like(values[:, :0])]
    for t in range(keys.shape[1]):
        reads.append(lact_recall(start, queries[:, t])[:, None])

        def loss(w: Weights, t: int = t) -> Tensor:
            return -(lact_recall(w, keys[:, t]) * values[:, t]).sum(-1)

        slope = gradient(loss, start)
        gradients = {
            name: g - _each(rates[:, t, :, i]) * slope[name]
            for i, (name, g) in enumerate(gradients.items())
        }
        momenta, count = momenta + momentum[:, t], count + 1
        if count == chunk:
            start, step = changed()
            gradients = {n: torch.zeros_like(g) for n, g in gradients.items()}
            momenta, count = torch.zeros_like(momenta), 0
    pending = changed()[0] if count else start
    return torch.cat(reads, 1), pending, start, step, gradients, momenta


def _length(weights: Tensor) -> Tensor:
    """Return the lengths of rows (B, H, m, 1)."""
    return weights.square().sum(-1, keepdim=True).sqrt()


def end_to_end(
    model: nn.Module,
    changes: Weights,
    ids: list[int],
    opening: int,
    scale: float,
    chunk: int,
    rate: float,
    clip: float,
) -> Weights:
    """Write one text by TTT-E2E's rule, by whole weights put into a model of transformers.

    Args:
        model: whose MLPs are linear maps of names such as "model.layers.0.mlp.up_proj.weight".
        changes: "A.NAME" (r, in) and "B.NAME" (out, r) of such names: the change of that weight is scale · B A.
        ids: of the text.
        opening: the id of the token that opens a text.
        scale: s.
        chunk: tokens of a step, each read behind as many before it.
        rate: the learning rate.
        clip: the longest gradient of all changes together.
    """
    names = [name.removeprefix("A.") for name in changes if name.startswith("A.")]
    plain = dict(model.named_parameters())
    for start in range(0, len(ids), chunk):

        def loss(w: Weights, start: int = start) -> Tensor:
            begin, stop = max(0, start - chunk), min(start + chunk, len(ids))
            text = torch.tensor([[opening, *ids][begin : stop + 1]])
            whole = {n: plain[n] + scale * w["B." + n] @ w["A." + n] for n in names}
            logits = functional_call(model, whole, kwargs={"input_ids": text[:, :-1]}).logits
            nll = F.cross_entropy(logits[0], text[0, 1:], reduction="none")
            return nll[start - begin :].mean()

        slopes = gradient(loss, changes)
        length = torch.cat([slope.flatten() for slope in slopes.values()]).norm().item()
        size = rate * min(1.0, clip / length)
        changes = {name: x - size * slopes[name] for name, x in changes.items()}
    return changes
