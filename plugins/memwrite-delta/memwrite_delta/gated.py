"""The scan by flash-linear-attention's gated delta rule, on a CUDA device.

That library has one gate for all rows of a state, holds it as (Dk, Dv), and reads after it writes:

    S ← α S;  S ← S + β (v' − S k) kᵀ;  read = S q · scale

which is our recurrence with α = keep, β = erase / keep and v' = v write / β. It multiplies in TF32, of 10 bits, so it is
used only where torch is allowed to do the same (`torch.set_float32_matmul_precision`), and only where neither quotient
spoils more than that.

Source: flash-linear-attention 0.5, `fla.ops.gated_delta_rule.chunk_gated_delta_rule`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

WIDEST = 256  # Dk that the library takes
LARGEST = 1000.0  # quotient of gates


def fits(inputs: Sequence[Tensor]) -> bool:
    """Return whether the library is installed, is precise enough here, and can express these gates."""
    _, keys, _, log_keep, erase, write, state = inputs
    return (
        state.is_cuda
        and state.dtype == torch.float32
        and _tf32_is_allowed()
        and find_spec("fla") is not None
        and keys.shape[-1] <= WIDEST
        and keys.shape[1] > 0
        and {gate.shape[-1] for gate in (log_keep, erase, write)} == {1}
        and expressible(log_keep, erase, write)
    )


def expressible(log_keep: Tensor, erase: Tensor, write: Tensor) -> bool:
    """Return whether both quotients are moderate: they are not near a keep of 0, or where much is written and little erased."""
    moderate = (log_keep >= -math.log(LARGEST)) & (write <= LARGEST * erase)
    return bool(moderate.all())


def scan(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Do `memwrite_delta.scan.scan` for inputs that `fits` accepts."""
    queries, *others, state = (x.float() for x in inputs)
    rule = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    converted = convert(queries, *others)
    later, after = rule(
        **converted, scale=1.0, initial_state=state.mT.contiguous(), output_final_state=True
    )
    first = (state * queries[:, 0, :, None]).sum(-1)[:, None]
    return torch.cat([first, later[:, :-1]], 1), after.mT.contiguous()


def convert(
    queries: Tensor, keys: Tensor, values: Tensor, log_keep: Tensor, erase: Tensor, write: Tensor
) -> dict[str, Tensor]:
    """Return the library's arguments. It reads after writing, so every query is asked one token early, the first never."""
    erases = erase > 0
    # Where both are 0 nothing is written, and any quotient serves; 1 is that of coupled gates.
    ratio = torch.where(erases, write / torch.where(erases, erase, 1), 1)
    return {
        "q": F.pad(queries[:, 1:], (0, 0, 0, 0, 0, 1)),
        "k": keys,
        "v": values * ratio * log_keep.exp(),
        "g": log_keep[..., 0],
        "beta": (erase * (-log_keep).exp())[..., 0],
    }


def _tf32_is_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    # From torch 2.9 on; there the older attribute raises once somebody has set this one.
    precision = getattr(matmul, "fp32_precision", None)
    return precision == "tf32" if precision else bool(matmul.allow_tf32)
