"""transformers' Trainer around a Memory: progress bar, checkpoints, exact resume."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import ProgressCallback, Trainer, TrainingArguments

from memwrite.config import Config
from memwrite.loss import Batch, MemoryOutput
from memwrite.memory import Memory
from memwrite.tasks.base import Curriculum, Examples, Task, collate
from memwrite.training.progress import Advance, Bar, Log

CHECKPOINTS, LOG, WEIGHTS = "checkpoints", "log.jsonl", "model.safetensors"


class _Trainee(nn.Module):
    """A Memory without the `config` that the Trainer would take for a transformers one, and its curriculum."""

    def __init__(self, memory: Memory, advance: Advance | None) -> None:
        super().__init__()
        self.memory = memory
        self.advance = advance

    def forward(self, batch: Batch) -> MemoryOutput:
        output: MemoryOutput = self.memory(batch)
        return output


class _MemoryTrainer(Trainer):  # type: ignore[misc]
    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        output = model(**inputs)
        if model.training and self.model.advance is not None:
            self.model.advance.step(output.exact[output.asked], self.state.global_step)
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        asked = output.asked.flatten(1).double()
        exact = (output.exact.flatten(1) * asked).sum(1) / asked.sum(1).clamp(min=1)
        return loss.detach(), exact, torch.zeros_like(exact)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.model.advance is not None and "loss" in logs:
            logs = {**logs, **self.model.advance.report()}
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # Examples are random by their index; in order, an index says how far training is.
        return SequentialSampler(train_dataset or self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The inherited way refuses tensors that share memory, as tied embeddings do.
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        safetensors.torch.load_model(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)
        if self.model.advance is not None:
            self.model.advance.restore()


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
    advance = Advance(task, wanted.batch_size) if isinstance(task, Curriculum) else None
    trainer = _MemoryTrainer(
        model=_Trainee(memory, advance),
        args=arguments,
        train_dataset=task.training(wanted.steps * wanted.batch_size, config.seed),
        eval_dataset=held,
        data_collator=collate,
        callbacks=[Log(out / LOG)],
        compute_metrics=_exact_match if advance is not None else None,
    )
    if advance is not None and not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar(advance))
    trainer.train(resume_from_checkpoint=checkpoint)


def _exact_match(prediction: Any) -> dict[str, float]:
    return {"exact_match": float(prediction.predictions.mean())}
