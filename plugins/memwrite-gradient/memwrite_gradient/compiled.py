"""Inner steps compiled by torch, the gradient that they take included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from memwrite.errors import ConfigError

R = TypeVar("R")


def compiled(step: Callable[..., R]) -> Callable[..., R]:
    """Return `step` as one compiled function; compilation waits for the first call.

    Raises:
        ConfigError: this torch cannot trace a gradient.
    """
    import torch._dynamo.config as tracing

    if not hasattr(tracing, "trace_autograd_ops"):
        raise ConfigError(
            f"writer.params.compile wants a newer torch than {torch.__version__}, one that traces autograd.grad"
        )
    whole = torch.compile(step, fullgraph=True)

    def run(*arguments: object) -> R:
        with tracing.patch(trace_autograd_ops=True):
            return whole(*arguments)

    return run
