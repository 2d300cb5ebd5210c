"""Seconds of work, part of which an accelerator may do behind the program's back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def timed(
    device: torch.device, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> tuple[T, float]:
    """Return what `work` gives for these arguments, and the seconds until the device had finished it."""
    _wait(device)
    begun = time.perf_counter()
    result = work(*args, **kwargs)
    _wait(device)
    return result, time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
