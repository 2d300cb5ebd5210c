"""The scan as compiled loops, for CPU.

States are (Dk, Dv) here, so that the innermost loops run over neighbouring numbers. The backward pass keeps the state
before every `stride`-th token and computes those in between again.

The adjoint, with A the gradient of S_t, r that of read_t, a = A k_t and u_t = write_t v_t − erase_t (S_{t−1} k_t);
· is a product of every row, Σ a sum over rows:

    values: write a      write: v a      erase: −(S_{t−1} k_t) a      keep: A · S_{t−1}
    queries: Σ r S_{t−1}      keys: Σ u_t A − (erase a) S_{t−1}
    S_{t−1}: Diag(keep) A − (erase a) k_tᵀ + r q_tᵀ
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Loop = Callable[..., None]

MATRIX = "float64[:, ::1]"
MATRICES = "float64[:, :, ::1]"
# Vector units add up in an order of their own. Infinities and NaN stay what they are.
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}


def _compiled(*arguments: str) -> Callable[[Loop], Loop]:
    """Compile for arguments of these types now, or load what an earlier process compiled."""
    signature = f"void({', '.join(arguments)})"

    def compiled(loop: Loop) -> Loop:
        try:
            return numba.njit(signature, cache=True, **OPTIONS)(loop)
        except (RuntimeError, OSError):  # nowhere to write a cache to
            return numba.njit(signature, **OPTIONS)(loop)

    return compiled


def _step(
    keys: Array,
    values: Array,
    keep: Array,
    erase: Array,
    write: Array,
    t: int,
    state: Array,
    update: Array,
) -> None:
    """Take `state` from before token t to behind it; `update` becomes u_t."""
    rows = range(state.shape[1])
    for c in rows:
        update[c] = 0.0
    for i in range(state.shape[0]):
        for c in rows:
            update[c] += keys[t, i] * state[i, c]
    for c in rows:
        update[c] = write[t, c] * values[t, c] - erase[t, c] * update[c]
    for i in range(state.shape[0]):
        for c in rows:
            state[i, c] = keep[t, c] * state[i, c] + keys[t, i] * update[c]


_step = numba.njit(**OPTIONS)(_step)


@_compiled(*[MATRIX] * 8, MATRICES, "int64")
def _forward(
    queries: Array,
    keys: Array,
    values: Array,
    keep: Array,
    erase: Array,
    write: Array,
    state: Array,
    reads: Array,
    saved: Array,
    stride: int,
) -> None:
    """Scan one sequence: fill `reads`, and `saved` as far as it has room, and change `state`."""
    update = np.empty(state.shape[1])
    for t in range(keys.shape[0]):
        if t % stride == 0 and t // stride < saved.shape[0]:
            for i in range(state.shape[0]):
                for c in range(state.shape[1]):
                    saved[t // stride, i, c] = state[i, c]
        for c in range(state.shape[1]):
            reads[t, c] = 0.0
        for i in range(state.shape[0]):
            for c in range(state.shape[1]):
                reads[t, c] += queries[t, i] * state[i, c]
        _step(keys, values, keep, erase, write, t, state, update)


@_compiled(*[MATRIX] * 7, MATRICES, MATRICES, *[MATRIX] * 7)
def _backward(
    queries: Array,
    keys: Array,
    values: Array,
    keep: Array,
    erase: Array,
    write: Array,
    grad_reads: Array,
    saved: Array,
    states: Array,
    grad_queries: Array,
    grad_keys: Array,
    grad_values: Array,
    grad_keep: Array,
    grad_erase: Array,
    grad_write: Array,
    grad_state: Array,
) -> None:
    """Go back over one sequence: fill the gradients, and take `grad_state` from the end to the start.

    `states` has room for the states of one stride.
    """
    stride, width, height = states.shape
    running = np.empty((width, height))
    update, pull, recalled = np.empty(height), np.empty(height), np.empty(height)
    for n in range(saved.shape[0] - 1, -1, -1):
        start, stop = n * stride, min((n + 1) * stride, keys.shape[0])
        for i in range(width):
            for c in range(height):
                running[i, c] = saved[n, i, c]
        for t in range(start, stop):
            for i in range(width):
                for c in range(height):
                    states[t - start, i, c] = running[i, c]
            _step(keys, values, keep, erase, write, t, running, update)
        for t in range(stop - 1, start - 1, -1):
            state = states[t - start]
            for c in range(height):
                pull[c] = recalled[c] = grad_keep[t, c] = 0.0
            for i in range(width):
                for c in range(height):
                    pull[c] += keys[t, i] * grad_state[i, c]
                    recalled[c] += keys[t, i] * state[i, c]
                    grad_keep[t, c] += grad_state[i, c] * state[i, c]
            for c in range(height):
                grad_values[t, c] = write[t, c] * pull[c]
                grad_write[t, c] = values[t, c] * pull[c]
                grad_erase[t, c] = -recalled[c] * pull[c]
                update[c] = write[t, c] * values[t, c] - erase[t, c] * recalled[c]
                pull[c] *= erase[t, c]
            for i in range(width):
                grad_query, grad_key = 0.0, 0.0
                for c in range(height):
                    grad_query += grad_reads[t, c] * state[i, c]
                    grad_key += update[c] * grad_state[i, c] - pull[c] * state[i, c]
                    grad_state[i, c] = (
                        keep[t, c] * grad_state[i, c]
                        - pull[c] * keys[t, i]
                        + grad_reads[t, c] * queries[t, i]
                    )
                grad_queries[t, i], grad_keys[t, i] = grad_query, grad_key


def forward(inputs: Sequence[Tensor], save: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """See `memwrite_delta.scan.Algorithm`."""
    *tokens, state = inputs
    sequences = _sequences(*tokens)
    batch, heads, length, width = sequences[1].shape
    stride = _stride(width)
    strides = -(-length // stride) if save else 0
    after = state.mT.clone(memory_format=torch.contiguous_format)
    reads = torch.empty_like(sequences[2])
    saved = reads.new_empty(batch, heads, strides, *after.shape[2:])
    for one in _each(*sequences, after, reads, saved):
        _forward(*one, stride)
    return reads.transpose(1, 2), after.mT.contiguous(), (saved,)


def backward(
    inputs: Sequence[Tensor], saved: Sequence[Tensor], grad_reads: Tensor, grad_state: Tensor
) -> tuple[Tensor, ...]:
    """See `memwrite_delta.scan.Algorithm`."""
    *tokens, _ = inputs
    sequences = _sequences(*tokens)
    grads = [torch.empty_like(x) for x in sequences]
    before = grad_state.mT.clone(memory_format=torch.contiguous_format)
    stride = _stride(sequences[1].shape[-1])
    states = before.new_empty(stride, *before.shape[2:]).numpy()
    for *arrays, saved_states in _each(
        *sequences, grad_reads.transpose(1, 2).contiguous(), *grads, before, *saved
    ):
        _backward(*arrays[:7], saved_states, states, *arrays[7:])
    grads[3] *= sequences[3]
    by_token = (grad.transpose(1, 2) for grad in grads)
    summed = (grad.sum_to_size(x.shape) for grad, x in zip(by_token, tokens, strict=True))
    return *summed, before.mT


def _stride(width: int) -> int:
    """Return the number of tokens between saved states (Dk, Dv), large enough that they take O(T Dv)."""
    return max(16, width)


def _sequences(
    queries: Tensor, keys: Tensor, values: Tensor, log_keep: Tensor, erase: Tensor, write: Tensor
) -> list[Tensor]:
    """Return what the loops take, (B, H, T, D): queries, keys, values, and keep, erase and write with a gate per row."""
    gates = (gate.expand_as(values) for gate in (log_keep.exp(), erase, write))
    return [x.transpose(1, 2).contiguous() for x in (queries, keys, values, *gates)]


def _each(*tensors: Tensor) -> Iterator[list[Array]]:
    """Yield for every batch row and head its part of each tensor (B, H, ...), as arrays that share their memory."""
    arrays = [x.detach().numpy() for x in tensors]
    for row, head in product(*map(range, tensors[0].shape[:2])):
        yield [array[row, head] for array in arrays]
