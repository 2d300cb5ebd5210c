"""transformers' Trainer around a Memory: progress bar, checkpoints, exact resume."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from memwrite.config import Config
from memwrite.loss import Batch, MemoryOutput
from memwrite.memory import Memory
from memwrite.tasks.base import Examples, Task, collate

CHECKPOINTS, LOG, WEIGHTS = "checkpoints", "log.jsonl", "model.safetensors"


class _Log(TrainerCallback):  # type: ignore[misc]
    """Appends what the Trainer reports to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        entry = {"step": state.global_step, "seconds": round(time.monotonic() - self._begun, 1)}
        with self._path.open("a") as file:
            file.write(json.dumps({**entry, **(logs or {})}) + "\n")


class _Trainee(nn.Module):
    """A Memory without the `config` that the Trainer would take for a transformers one."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, batch: Batch) -> MemoryOutput:
        output: MemoryOutput = self.memory(batch)
        return output


class _MemoryTrainer(Trainer):  # type: ignore[misc]
    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        output = model(**inputs)
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The inherited way refuses tensors that share memory, as tied embeddings do.
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        safetensors.torch.load_model(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)


def fit(memory: Memory, task: Task, config: Config, out: Path, checkpoint: str | None) -> None:
    """Train `memory` in place.

    Args:
        memory: what to train; its trainable parameters are those that require a gradient.
        task: gives the examples.
        config: its `training` and `seed` say how.
        out: run folder, for checkpoints and the log.
        checkpoint: where to go on from; None to begin.
    """
    wanted = config.training
    held: Examples | None = task.evaluation()
    if not len(held or ()):
        held = None
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=wanted.steps,
        per_device_train_batch_size=wanted.batch_size,
        per_device_eval_batch_size=wanted.batch_size,
        learning_rate=wanted.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=wanted.warmup,
        weight_decay=wanted.weight_decay,
        max_grad_norm=wanted.clip,
        adam_beta2=0.95,
        bf16=wanted.bf16,
        use_cpu=config.backbone.device == "cpu",
        seed=config.seed,
        logging_steps=min(wanted.every, 50),
        save_steps=wanted.every,
        save_total_limit=2,
        eval_strategy="steps" if held else "no",
        eval_steps=wanted.every,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
    )
    trainer = _MemoryTrainer(
        model=_Trainee(memory),
        args=arguments,
        train_dataset=task.training(wanted.steps * wanted.batch_size, config.seed),
        eval_dataset=held,
        data_collator=collate,
        callbacks=[_Log(out / LOG)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
