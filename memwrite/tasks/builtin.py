"""The tasks that come with memwrite."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import TaskPlugin, hookimpl
from memwrite.tasks.kv import KvConfig, KvTask
from memwrite.tasks.text import TextConfig, TextTask


@hookimpl
def memwrite_tasks() -> Sequence[TaskPlugin]:
    """Texts, and what is drawn at random."""
    return [
        TaskPlugin(1, "text", "language modelling on plain text", TextConfig, TextTask),
        TaskPlugin(1, KvTask.name, "key-value pairs, all asked for (GradMem)", KvConfig, KvTask),
    ]
