"""What a run folder's memory remembers, on the task that it was trained on or on other data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import PartConfig, load_config, part_config
from memwrite.errors import ConfigError
from memwrite.evaluation import answers
from memwrite.evaluation import key_value as kv
from memwrite.evaluation.answer_table import AnswerEvaluation
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite.tasks.base import Examples, Task
from memwrite.tasks.kv import PairsConfig
from memwrite.utils.cpu import tuned_cpu


@dataclass(frozen=True)
class Report:
    """What was evaluated, and what came of it: what is recalled of pairs of keys and values, or what is answered.

    Attributes:
        task: its name and parameters, with all overrides.
        result: the figures.
    """

    task: PartConfig
    result: kv.Evaluation | AnswerEvaluation

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**self.result.as_dict(), "task": self.task.name, "params": self.task.params}


@tuned_cpu()
def evaluate_run(
    run: Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    examples: int | None = None,
) -> Report:
    """Evaluate a run folder on the task that it was trained on, or on another one that the overrides name.

    Args:
        run: made by `memwrite train`.
        overrides: of its config, each as `key.path=value`. Of other files (task.params.files) than those that it was
            trained on all is evaluated, if task.params.held_out does not say otherwise.
        seed: of fresh examples; None for the ones held out in training.
        examples: at least 2; None for all that the task has.

    Raises:
        ConfigError: the folder holds no run on a task, or an override or a number is wrong.
        InputError: there is nothing to evaluate, or a file is damaged.
    """
    if not run.is_dir():
        raise ConfigError(f"'{run}' is no run folder: make one with `memwrite train`")
    part = _task(run, overrides)
    plugin = registry().task(part.name)
    if examples is not None and "examples" in _fields(plugin.config):
        part.params["examples"] = examples
    config: Any = part_config(plugin.config, part.params, "task.params")
    memory = Memory.from_config(run, overrides)
    chosen = _examples(plugin.build(config, memory.backbone.tokenizer), seed, examples)
    kind = kv if isinstance(config, PairsConfig) else answers
    return Report(part, kind.evaluate(memory, chosen))


def _task(run: Path, overrides: Sequence[str]) -> PartConfig:
    trained = load_config(run / CONFIG_FILE).task
    wanted = load_config(run / CONFIG_FILE, overrides).task
    if wanted is None:
        raise ConfigError(f"'{run}' was trained on no task: name one, as in task.name=squad")
    changed = OmegaConf.from_dotlist(list(overrides)).get("task", {}).get("params") or {}
    params = dict(wanted.params)
    if trained is not None and wanted.name != trained.name:
        params = {name: value for name, value in params.items() if name in changed}
    if "files" in changed and "held_out" not in changed:
        params["held_out"] = 1.0
    # What counts is the end of a curriculum, and its stages may be larger than that now.
    params.pop("curriculum", None)
    return PartConfig(wanted.name, params)


def _fields(config: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _examples(task: Task, seed: int | None, count: int | None) -> Examples:
    """Fresh examples, or those held out, of which `count` are taken at even distances."""
    if count is not None and count < 2:
        raise ConfigError(f"there must be at least 2 examples, got {count}")
    held = task.evaluation()
    if seed is not None:
        return task.fresh(count or len(held), seed)
    if count is None or count >= len(held):
        return held
    return [held[i * len(held) // count] for i in range(count)]
