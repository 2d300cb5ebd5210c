"""Evaluate a run folder, or a config that needs no training, on its task or on other data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import PartConfig, load_config, part_config
from memwrite.errors import ConfigError
from memwrite.evaluation import answers
from memwrite.memory import Memory
from memwrite.plugins import TaskPlugin, registry
from memwrite.tasks.base import Evaluation, Examples, Task, spread
from memwrite.utils.cpu import tuned_cpu


@dataclass(frozen=True)
class Report:
    """What was evaluated, and what was measured.

    Attributes:
        task: its name and parameters, with all overrides.
        result: the figures, as the task scores them.
    """

    task: PartConfig
    result: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**self.result.as_dict(), "task": self.task.name, "params": self.task.params}


@tuned_cpu()
def evaluate_run(
    run: Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    seed: int | None = None,
    examples: int | None = None,
) -> Report:
    """Evaluate a memory on the task of its config, or on another one that the overrides name.

    Args:
        run: a folder made by `memwrite train`, or the YAML file, or the config itself, of a memory that needs no
            training.
        overrides: of its config, each as `key.path=value`. Where they name other files (task.params.files), all of
            these are evaluated unless task.params.held_out is given too.
        seed: of fresh examples; None for the ones held out in training.
        examples: at least 2; None for all that the task has.

    Raises:
        ConfigError: there is no such run or file, it has no task, or an override or a number is wrong.
        InputError: there is nothing to evaluate, or a file is damaged.
    """
    if isinstance(run, Path) and not run.exists():
        raise ConfigError(
            f"'{run}' is neither a run folder nor a config: make a run folder with `memwrite train CONFIG`"
        )
    name, params, overridden = _task(run, overrides)
    plugin = registry().task(name)
    part = PartConfig(name, _evaluation_params(plugin, params, overridden, examples))
    config: Any = part_config(plugin.config, part.params, "task.params")
    memory = Memory.from_config(run, overrides)
    if isinstance(run, Mapping) or run.is_file():
        _warn_if_untrained(memory)
    chosen = _examples(plugin.build(config, memory.backbone.tokenizer), seed, examples)
    evaluate = plugin.evaluate or answers.evaluate
    with torch.no_grad():
        return Report(part, evaluate(memory, chosen))


def _task(
    run: Path | Mapping[str, Any], overrides: Sequence[str]
) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
    """Return the task's name, its parameters, and those of them that the overrides set."""
    source = run / CONFIG_FILE if isinstance(run, Path) and run.is_dir() else run
    task = load_config(source, overrides).task
    if task is None:
        what = f"'{run}'" if isinstance(run, Path) else "the config"
        raise ConfigError(f"{what} has no task: name one, as in task.name=squad")
    overridden = OmegaConf.from_dotlist(list(overrides)).get("task", {}).get("params") or {}
    return task.name, dict(task.params), overridden


def _evaluation_params(
    plugin: TaskPlugin, params: dict[str, Any], overridden: Mapping[str, Any], examples: int | None
) -> dict[str, Any]:
    if plugin.evaluation_params is not None:
        params = plugin.evaluation_params(params, overridden)
    if examples is not None and plugin.examples is not None:
        params = {**params, plugin.examples: examples}
    return params


def _warn_if_untrained(memory: Memory) -> None:
    for role, name, module in (
        ("writer", memory.config.writer.name, memory.writer),
        ("reader", memory.config.reader.name, memory.reader),
    ):
        if any(True for _ in module.parameters()):
            warnings.warn(
                f"the {role} '{name}' has weights that were never trained: train them with `memwrite train` and "
                f"evaluate the run folder",
                stacklevel=3,
            )


def _examples(task: Task, seed: int | None, count: int | None) -> Examples:
    """Return fresh examples, or those held out, of which `count` are taken at even distances."""
    if count is not None and count < 2:
        raise ConfigError(f"there must be at least 2 examples, got {count}")
    held_out = task.evaluation()
    if seed is not None:
        return task.fresh(count or len(held_out), seed)
    return spread(held_out, count)
