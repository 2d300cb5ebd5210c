"""The tasks by their names in a config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memwrite.errors import ConfigError, did_you_mean
from memwrite.tasks.base import Task
from memwrite.tasks.kv import KvConfig, KvTask
from memwrite.tasks.text import TextConfig, TextTask
from memwrite.tokenizer import Codec


@dataclass(frozen=True)
class TaskKind:
    """`config`: the dataclass of a task's parameters; `build`: makes the task from them and a tokenizer."""

    config: type[Any]
    build: Callable[[Any, Codec], Task]


TASKS = {
    "text": TaskKind(TextConfig, TextTask),
    "kv-retrieval": TaskKind(KvConfig, KvTask),
}


def task_kind(name: str) -> TaskKind:
    """The task called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"no task is called '{name}' ({did_you_mean(name, TASKS)})")
    return TASKS[name]
