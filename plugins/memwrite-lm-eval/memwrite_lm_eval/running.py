"""The harness's tasks, found and run, with its complaints as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager

from memwrite.errors import ConfigError, MemwriteError

#: What the harness's task manager gives: tasks and groups by name.
Tasks = dict[str, dict[str, Any]]


def load_tasks(names: Sequence[str], metadata: dict[str, Any]) -> Tasks:
    """Return the harness's tasks of these names; a folder of YAML files stands for all tasks in it.

    Args:
        names: of tasks, groups, tags, YAML files or folders.
        metadata: what some tasks want to know, such as lengths.

    Raises:
        ConfigError: there is no such task, or it could not be loaded.
    """
    folders = [name for name in names if Path(name).is_dir()]
    rest = [name for name in names if name not in folders]
    manager = TaskManager(include_path=folders, include_defaults=bool(rest), metadata=metadata)
    for name in rest:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise ConfigError(f"the harness has no task '{name}': `lm-eval ls tasks` lists them")
    own = TaskManager(include_path=folders, include_defaults=False).all_subtasks if folders else []
    if folders and not own:
        raise ConfigError(f"there is no YAML file of a task in '{folders[0]}'")
    wanted = [*own, *rest]
    try:
        loaded: Tasks = manager.load(wanted)
    except Exception as error:  # a task's own code, and its download, may raise anything
        sentence = " ".join(str(error).split())
        raise ConfigError(
            f"the tasks {', '.join(wanted)} could not be loaded: {type(error).__name__}: {sentence}"
        ) from error
    return loaded


def run(
    model: LM,
    tasks: Tasks,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """Return the harness's results on tasks, without the samples.

    Args:
        model: the model.
        tasks: as `load_tasks` gives them.
        num_fewshot: examples in a prompt; by default as many as each task says. A task that says 0 keeps to it.
        limit: documents of each task at most.
        apply_chat_template: whether prompts are put as a user's message.

    Raises:
        MemwriteError: as the model does.
        ConfigError: the harness cannot run the tasks.
    """
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", own or 0 if num_fewshot is None or own == 0 else num_fewshot)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    try:
        results: dict[str, Any] = evaluate(
            lm=model,
            task_dict=tasks,
            limit=limit,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )
    except MemwriteError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        sentence = " ".join(str(error).split())
        raise ConfigError(
            f"the harness cannot run these tasks: {type(error).__name__}: {sentence}"
        ) from error
    return results
