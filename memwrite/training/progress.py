"""What training shows of itself while it runs, and how it moves through a curriculum."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback

from memwrite.storage import write_bytes
from memwrite.tasks.base import Curriculum

# Weight of a new batch in the running exact match, and how many batches may have been drawn ahead of a decision.
NEW, AHEAD = 0.05, 2


class Advance(nn.Module):
    """A curriculum's progress, kept in buffers so that checkpoints hold it.

    Args:
        task: its `starts` are moved.
        batch_size: examples per step.
    """

    exact: Tensor
    starts: Tensor

    def __init__(self, task: Curriculum, batch_size: int) -> None:
        super().__init__()
        self._task, self._batch_size = task, batch_size
        self.register_buffer("exact", torch.zeros((), dtype=torch.float64))
        starts = torch.full((len(task.stages),), -1)
        starts[0] = 0
        self.register_buffer("starts", starts)

    def restore(self) -> None:
        """Tell the task what a checkpoint said."""
        self._task.starts[:] = [int(start) for start in self.starts if start >= 0]

    def step(self, exact: Tensor, done: int) -> None:
        """Take note of `exact` of a batch's queries that were asked after `done` steps before it; perhaps begin the next stage."""
        self.exact += NEW * (exact.double().mean().to(self.exact.device) - self.exact)
        task = self._task
        if self.exact >= task.advance and len(task.starts) < len(task.stages):
            self.starts[len(task.starts)] = (done + 1 + AHEAD) * self._batch_size
            self.exact.zero_()
            self.restore()

    def report(self) -> dict[str, float]:
        """The running exact match of this stage, and the stage."""
        stage = self._task.stages[len(self._task.starts) - 1]
        return {"exact_match": round(self.exact.item(), 4), "stage": stage}


class Log(TrainerCallback):  # type: ignore[misc]
    """Appends what the Trainer reports to a file of JSON lines, which ends where a resumed run begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [entry for entry in map(json.loads, lines) if entry["step"] <= state.global_step]
        write_bytes(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._begun = time.monotonic() - (kept[-1]["seconds"] if kept else 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        entry = {"step": state.global_step, "seconds": round(time.monotonic() - self._begun, 1)}
        with self._path.open("a") as file:
            file.write(json.dumps({**entry, **(logs or {})}) + "\n")


class Bar(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the exact match behind it."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.training_bar.set_postfix(self._advance.report(), refresh=False)
