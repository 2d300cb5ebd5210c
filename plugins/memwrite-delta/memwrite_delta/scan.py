"""The delta-rule scan: T writes into matrix states, and a read before each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from memwrite_delta import chunked, gated, naive


class Algorithm(Protocol):
    """A way to compute the scan of the seven inputs that `scan` takes, in float64 and with T > 0; a module can be one."""

    def forward(
        self, inputs: Sequence[Tensor], save: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return reads, the new state, and, with `save`, what `backward` needs besides the inputs."""

    def backward(
        self,
        inputs: Sequence[Tensor],
        saved: Sequence[Tensor],
        grad_reads: Tensor,
        grad_state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of the seven inputs; nothing that is given is changed."""


def scan(
    queries: Tensor | None,
    keys: Tensor,
    values: Tensor,
    log_keep: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Read and write T tokens, every head H of every batch row B on its own:

        read_t = S_{t−1} q_t
        S_t = Diag(exp(log_keep_t)) S_{t−1} − Diag(erase_t) (S_{t−1} k_t) k_tᵀ + Diag(write_t) v_t k_tᵀ

    A token with log_keep = erase = write = 0 leaves the state exactly as it is. The scan computes in float64, because in
    float32 a keep of 1 − 1e-7 is lost, which makes an error of 3e-4 in some thousand tokens. It uses
    flash-linear-attention where `gated.fits`, else compiled loops on CPU where numba is installed, else `chunked`.

    Args:
        queries: (B, T, H, Dk), or None to write only.
        keys: (B, T, H, Dk). The state stays bounded for keys of length 1 at most.
        values: (B, T, H, Dv).
        log_keep: at most 0, and −inf is allowed; (B, T, H, Dv), or (B, T, H, 1) where all rows of S share a gate.
        erase: in [0, 1], shaped as `log_keep`.
        write: shaped as `log_keep`.
        state: S (B, H, Dv, Dk), float32 or float64. It is not changed.

    Returns:
        Reads (B, T, H, Dv), with T = 0 if there are no queries, and the new state, both of `state`'s dtype. Gradients of
        gradients (`create_graph`) are right, but as slow as the oracle.

    Raises:
        TypeError: the state is neither float32 nor float64.
        ValueError: a shape does not fit.
    """
    read_keys = keys.new_zeros(()).expand_as(keys) if queries is None else queries
    inputs = (read_keys, keys, values, log_keep, erase, write, state)
    _check(inputs)
    if keys.shape[1] == 1 and not torch.is_grad_enabled():
        reads, after = _step(inputs)
    elif gated.fits(inputs):
        reads, after = gated.scan(inputs)
    else:
        compiled = _compiled() if keys.device.type == "cpu" else None
        reads, after = scan_with(compiled or chunked, inputs)
    return reads if queries is not None else reads[:, :0], after


def _step(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scan one token, as text is generated: for one, no algorithm is worth its preparations."""
    *tokens, state = inputs
    query, key, value, log_keep, erase, write = (x[:, 0].to(state.dtype) for x in tokens)
    recalled, read = (state @ torch.stack((key, query), -1)).unbind(-1)
    update = write * value - erase * recalled
    after = torch.addcmul(log_keep.exp()[..., None] * state, update[..., None], key[..., None, :])
    return read[:, None], after


def scan_with(algorithm: Algorithm, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scan by this algorithm."""
    wide = [x.double() for x in inputs]
    values, state = wide[2], wide[-1]
    if not values.shape[1]:
        reads, after = values, state
    elif torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        reads, after = _Scan.apply(algorithm, *wide)  # type: ignore[no-untyped-call]
    else:
        reads, after, _ = algorithm.forward(wide, save=False)
    return reads.to(inputs[-1].dtype), after.to(inputs[-1].dtype)


class _Scan(torch.autograd.Function):
    """An algorithm with its adjoint, which takes less time and memory than autograd's graph of it."""

    @staticmethod
    def forward(ctx: Any, algorithm: Algorithm, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        reads, after, saved = algorithm.forward(inputs, save=True)
        ctx.algorithm, ctx.inputs = algorithm, len(inputs)
        ctx.save_for_backward(*inputs, *saved)
        return reads, after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # gradient checkpointing hands them out once
        inputs, saved = tensors[: ctx.inputs], tensors[ctx.inputs :]
        if torch.is_grad_enabled():
            return None, *_differentiable(inputs, grads)
        return None, *ctx.algorithm.backward(inputs, saved, *grads)


def _differentiable(inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> Iterator[Tensor | None]:
    """Return gradients that can be differentiated in turn, by autograd's graph of the oracle."""
    leaves = [x for x in inputs if x.requires_grad]
    gradients = iter(torch.autograd.grad(naive.scan(*inputs), leaves, grads, create_graph=True))
    return (next(gradients) if x.requires_grad else None for x in inputs)


@cache
def _compiled() -> Algorithm | None:
    """Return the kernel, if there is a numba to compile it; it is imported at the first scan, because that takes a second."""
    try:
        from memwrite_delta import kernel
    except ImportError:
        return None
    return kernel


def _check(inputs: Sequence[Tensor]) -> None:
    queries, keys, values, log_keep, erase, write, state = inputs
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state is {state.dtype}, not float32 or float64: convert it with .float()")
    if state.ndim != 4 or keys.ndim != 4:
        raise ValueError(
            f"state (B, H, Dv, Dk) and keys (B, T, H, Dk) have four axes, not the shapes "
            f"{tuple(state.shape)} and {tuple(keys.shape)}"
        )
    batch, heads, height, width = state.shape
    length = keys.shape[1]
    named = {
        "queries": (queries, {width}),
        "keys": (keys, {width}),
        "values": (values, {height}),
        "log_keep": (log_keep, {1, height}),
        "erase": (erase, {1, height}),
        "write": (write, {1, height}),
    }
    for name, (tensor, widths) in named.items():
        if tensor.shape[:-1] != (batch, length, heads) or tensor.shape[-1] not in widths:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}; with {length} keys and a state {tuple(state.shape)} it "
                f"must be ({batch}, {length}, {heads}, {' or '.join(map(str, sorted(widths)))})"
            )
