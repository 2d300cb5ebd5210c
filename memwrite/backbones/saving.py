"""Writing a model as a transformers folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging


def save(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write config and weights of a transformers model, the weights as `dtype`, and leave the model as it is."""
    was = next(model.parameters()).dtype
    cast: dict[int, Tensor] = {}  # tied weights must stay one tensor, or they are stored twice
    weights = {
        name: cast.setdefault(weight.data_ptr(), weight.to(dtype))
        for name, weight in model.state_dict().items()
    }
    model.config.dtype = dtype
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=weights)
    finally:
        model.config.dtype = was


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars for weight files off the screen."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
