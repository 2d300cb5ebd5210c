"""What training shows of itself while it runs, and how it moves through a curriculum."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from memwrite.tasks.base import Curriculum
from memwrite.training.stages import Stage
from memwrite.utils.atomic import saving, write_bytes

# Weight of a new batch in the running exact match, and how many batches may have been drawn ahead of a decision.
NEW, AHEAD = 0.05, 2

# What the Trainer calls the exact match on held-out examples.
EXACT = "eval_exact_match"


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
        """Restore the task's stage starts from the buffers, as after loading a checkpoint."""
        self._task.starts[:] = [int(start) for start in self.starts if start >= 0]

    def step(self, exact: Tensor, done: int) -> None:
        """Record a batch's exact match () after `done` steps before it, and begin the next stage where it is due."""
        self.exact += NEW * (exact.to(self.exact) - self.exact)
        task = self._task
        if self.exact >= task.advance and len(task.starts) < len(task.stages):
            self.starts[len(task.starts)] = (done + 1 + AHEAD) * self._batch_size
            self.exact.zero_()
            self.restore()

    def report(self, done: int) -> dict[str, float]:
        """Return the running exact match of this stage after `done` steps in all, and the stage."""
        index = len(self._task.starts) - 1
        begun = self._task.starts[index] // self._batch_size - AHEAD if index else 0
        # The running mean begins at zero, which would have a warm start look like a bad one.
        seen = 1 - (1 - NEW) ** (done - begun)
        exact = self.exact.item() / seen if seen else 0.0
        return {"exact_match": round(exact, 4), "stage": self._task.stages[index]}


#: What every line of a log counts from its first: wall time, and CPU time of this process.
_CLOCKS = {"seconds": time.monotonic, "cpu_seconds": time.process_time}


class Log(TrainerCallback):  # type: ignore[misc]
    """Appends what the Trainer reports to a file of JSON lines, which ends where a resumed run begins."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._begun: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = [entry for entry in self._entries() if self._stands(entry, state.global_step)]
        if state.is_world_process_zero:
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            write_bytes(self._stage.log, text.encode())
        for name, clock in _CLOCKS.items():
            self._begun[name] = clock() - (kept[-1].get(name, 0.0) if kept else 0.0)

    def _entries(self) -> list[dict[str, Any]]:
        for path in (self._stage.log, self._stage.earlier_log):
            if path is not None and path.exists():
                lines = path.read_text().splitlines(keepends=True)
                return [json.loads(line) for line in lines if line.endswith("\n")]
        return []

    def _stands(self, entry: dict[str, Any], step: int) -> bool:
        own = entry.get("training_stage") == self._stage.number
        return not own or entry["step"] <= step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        # The summary in the end knows nothing of what was before a resumed run began.
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        spent = {name: round(clock() - self._begun[name], 1) for name, clock in _CLOCKS.items()}
        entry = {"step": state.global_step, **spent}
        with saving(self._stage.folder), self._stage.log.open("a") as file:
            file.write(json.dumps({**entry, **logs}) + "\n")


class Until(TrainerCallback):  # type: ignore[misc]
    """Ends training once the held-out exact match reaches `threshold`."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        control.should_training_stop |= metrics[EXACT] >= self._threshold


def tensorboard(out: Path, checkpoint: str | None) -> TensorBoardCallback:
    """Return a callback that writes the log for TensorBoard, without what was written after `checkpoint`."""
    from torch.utils.tensorboard import SummaryWriter

    done = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    return TensorBoardCallback(SummaryWriter(str(out / "tensorboard"), purge_step=done + 1))


class Bar(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the exact match behind it."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.training_bar.set_postfix(self._advance.report(state.global_step), refresh=False)
