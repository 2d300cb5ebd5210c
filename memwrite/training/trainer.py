"""transformers' Trainer around a Memory: progress bar, checkpoints, exact resume, several processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import SequentialSampler
from transformers import ProgressCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from memwrite.config import TrainingConfig
from memwrite.errors import ConfigError, DivergenceError
from memwrite.memory import Memory
from memwrite.tasks.base import IGNORED, Batch, Curriculum, Examples, Task, collate, spread
from memwrite.training.distillation import Teacher
from memwrite.training.folder import CHECKPOINTS
from memwrite.training.loss import MemoryOutput, training_loss
from memwrite.training.progress import EXACT, Advance, Bar, Log, Until, tensorboard
from memwrite.training.stages import Stage
from memwrite.utils.atomic import saving
from memwrite.utils.extras import extra

with extra("train"):
    from accelerate import PartialState

WEIGHTS = "model.safetensors"
#: The learning rate after the last step, as a share of its peak.
LAST_RATE = 0.02


class _Trainee(nn.Module):
    """Holds a Memory and its curriculum, and hides the `config` that the Trainer would take for a transformers one."""

    def __init__(self, memory: Memory, advance: Advance | None) -> None:
        super().__init__()
        self.memory = memory
        self.advance = advance

    def forward(self, batch: Batch) -> MemoryOutput:
        config = self.memory.config.training
        if config.objective == "labels":
            return training_loss(self.memory, batch)
        teacher = Teacher(self.memory, batch.context)
        if self.training and config.self_study.texts:
            batch = teacher.study(batch, config.self_study)
        return training_loss(self.memory, batch, teacher.predict(batch))


class _MemoryTrainer(Trainer):  # type: ignore[misc]
    """Trains on a batch in equal parts, one or more in each process, as if it were whole."""

    def __init__(self, stage: Stage, **options: Any) -> None:
        super().__init__(**options)
        self._stage = stage
        self._parts = self.args.world_size * self.args.gradient_accumulation_steps
        # For each part of a batch: the number of queries that were right, and of all with labels.
        self._right: list[Tensor] = []

    def _get_num_items_in_batch(self, batch_samples: Sequence[Any], device: torch.device) -> int:
        """Count the labels in all parts of a batch."""
        labels = sum(_labels(sample["batch"]) for sample in batch_samples)
        return int(self.accelerator.reduce(torch.tensor(labels, device=device)))

    def training_step(self, model: nn.Module, *inputs: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(model, *inputs, **options)
        norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not (loss.isfinite() and norm.isfinite()):
            # The Trainer would leave such a loss out of its log, and clip every weight to NaN.
            raise DivergenceError(
                f"training diverged in step {self.state.global_step + 1} of {self.state.max_steps}: loss {loss:.3g}, "
                f"gradient norm {norm:.3g}; the last checkpoint in {self.args.output_dir} is from before. Use a lower "
                f"training.learning_rate or training.clip, or a longer training.warmup"
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Any:
        output = model(**inputs)
        loss = output.loss
        if num_items_in_batch is not None:
            # The mean over a batch's labels is no mean over its parts, which the Trainer takes.
            share = _labels(inputs["batch"]) * self._parts / num_items_in_batch
            losses = {**output.losses, "target": output.losses["target"] * share}
            loss = torch.stack(list(losses.values())).sum()
            self._advance(output)
        return (loss, output) if return_outputs else loss

    def _advance(self, output: MemoryOutput) -> None:
        """Report each whole batch to the curriculum, the same in every process."""
        if self.model.advance is None:
            return
        exact = output.exact[output.labelled]
        self._right.append(torch.stack([exact.sum(), output.labelled.sum()]).double())
        if self.accelerator.sync_gradients:  # the last part
            right, labelled = self.accelerator.reduce(torch.stack(self._right).sum(0))
            self._right.clear()
            self.model.advance.step(right / labelled.clamp(min=1), self.state.global_step)

    def prediction_step(
        self, model: nn.Module, inputs: Mapping[str, Any], *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        labelled = output.labelled.flatten(1).double()
        exact = (output.exact.flatten(1) * labelled).sum(1) / labelled.sum(1).clamp(min=1)
        return loss.detach(), exact, torch.zeros_like(exact)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        until = self._stage.config.training.until
        if self.model.advance is not None and "loss" in logs:
            logs = {**logs, **self.model.advance.report(self.state.global_step)}
        if until is not None and EXACT in logs:
            logs = {**logs, "until": until, "reached": logs[EXACT] >= until}
        if self._stage.number is not None:
            logs = {**logs, "training_stage": self._stage.number}
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        # Examples are random by their index; in order, an index says how far training is.
        return SequentialSampler(train_dataset or self.train_dataset)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with saving(self._stage.folder):
            super()._save_checkpoint(*arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if frozen := self._frozen():
            # These a training begins with, whatever it resumes from.
            own = {n: t for n, t in self.model.state_dict().items() if n not in frozen}
            safetensors.torch.save_file(own, folder / WEIGHTS)
        else:
            # The inherited way refuses tensors that share memory, as tied embeddings do.
            safetensors.torch.save_model(self.model, str(folder / WEIGHTS))

    def _frozen(self) -> set[str]:
        """Return the names of the weights that are not trained."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {name for name, weight in named if not weight.requires_grad}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What is written next makes the checkpoint count as whole.
        PartialState().wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        if frozen := self._frozen():
            missing, _ = self.model.load_state_dict(safetensors.torch.load_file(path), strict=False)
            assert set(missing) <= frozen
        else:
            safetensors.torch.load_model(model or self.model, path)
        if self.model.advance is not None:
            self.model.advance.restore()


def fit(memory: Memory, task: Task, stage: Stage, checkpoint: str | None) -> None:
    """Train `memory` in place.

    Args:
        memory: the memory to train; its trainable parameters are those that require a gradient.
        task: where the examples come from.
        stage: `training` and `seed` of its config say how; checkpoints and log go into its folder.
        checkpoint: the one to resume from; None to begin.

    Raises:
        ConfigError: training is to go on until an exact match that is never measured.
        DivergenceError: a loss or a gradient is not finite.
        StorageError: the folder cannot be written.
    """
    config, training = stage.config, stage.config.training
    held_out: Examples | None = spread(task.evaluation(), training.evaluated)
    if not len(held_out or ()):
        held_out = None
    if training.until is not None and held_out is None:
        raise ConfigError(
            "training.until is set, but the task holds nothing out to be evaluated on"
        )
    advance = Advance(task, training.batch_size) if isinstance(task, Curriculum) else None
    trainer = _MemoryTrainer(
        stage,
        model=_Trainee(memory, advance),
        args=_arguments(stage, held_out is not None),
        train_dataset=task.training(training.steps * training.batch_size, config.seed),
        eval_dataset=held_out,
        data_collator=collate,
        callbacks=[Log(stage)],
        compute_metrics=_exact_match,
    )
    if training.until is not None:
        trainer.add_callback(Until(training.until))
    if training.tensorboard and trainer.is_world_process_zero():
        trainer.add_callback(tensorboard(stage.folder, checkpoint))
    if advance is not None and not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar(advance))
    if checkpoint is not None and _reached(checkpoint, training):
        trainer._load_from_checkpoint(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)


def _arguments(stage: Stage, evaluate: bool) -> TrainingArguments:
    config, training = stage.config, stage.config.training
    parts = PartialState().num_processes * training.accumulate
    return TrainingArguments(
        output_dir=str(stage.folder / CHECKPOINTS),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size // parts,
        per_device_eval_batch_size=training.batch_size // parts,
        gradient_accumulation_steps=training.accumulate,
        ddp_find_unused_parameters=True,  # a writer need not use all of its own in every step
        learning_rate=training.learning_rate,
        **_schedule(training),
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        adam_beta2=0.95,
        bf16=training.bf16,
        use_cpu=config.backbone.device == "cpu",
        seed=config.seed,
        logging_steps=_logging_steps(training.every),
        save_steps=training.every,
        save_total_limit=2,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=training.every,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
    )


def _schedule(training: TrainingConfig) -> dict[str, Any]:
    kind, options = "cosine_with_min_lr", {"min_lr_rate": LAST_RATE}
    if training.schedule == "stable":
        falling: dict[str, Any] = {"num_decay_steps": training.steps // 2, "decay_type": "1-sqrt"}
        kind, options = "warmup_stable_decay", {**falling, "min_lr_ratio": LAST_RATE}
    return {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options}


def _logging_steps(every: int) -> int:
    """Return at most 50, such that no line of the log spans a checkpoint."""
    return next(steps for steps in range(min(every, 50), 0, -1) if every % steps == 0)


def _labels(batch: Batch) -> int:
    return int((batch.labels != IGNORED).sum())


def _exact_match(prediction: Any) -> dict[str, float]:
    return {EXACT.removeprefix("eval_"): float(prediction.predictions.mean())}


def _reached(checkpoint: str, training: TrainingConfig) -> bool:
    """Say whether training had stopped where this checkpoint was saved."""
    log = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).log_history
    return training.until is not None and any(e.get(EXACT, 0.0) >= training.until for e in log)
