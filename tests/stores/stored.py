"""What tests of stores share: a memory, states, and a place of every kind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from support import MODELS

from memwrite import Memory, MemoryState

CONFIG = {
    "backbone": MODELS["llama"],
    "writer": {"name": "gradient", "params": {"slots": 2}},
    "reader": {"name": "prefix"},
}
MEMORY = Memory.from_config(CONFIG)
PLACES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: str(folder / "store.db"),
    "folder": lambda folder: f"file://{folder}/store",
    "objects": lambda folder: f"memory://{folder}/store",
}
GONE = timedelta(seconds=-1)


def some(number: int) -> MemoryState:
    """A state that differs from those of other numbers."""
    spec = MEMORY.writer.spec
    values = torch.randn(1, *spec.shapes["memory"], generator=torch.Generator().manual_seed(number))
    return MemoryState(spec, {"memory": values})
