"""The tasks that come with memwrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.plugins import TaskPlugin, hookimpl
from memwrite.tasks.babi import BabiConfig
from memwrite.tasks.base import Task
from memwrite.tasks.chunks import (
    ContinuationConfig,
    ContinuationTask,
    ReconstructionConfig,
    ReconstructionTask,
)
from memwrite.tasks.copying import CopyingTask
from memwrite.tasks.correlated import CorrelatedConfig, CorrelatedTask
from memwrite.tasks.kv import KvConfig, KvTask
from memwrite.tasks.locomo import LocomoConfig
from memwrite.tasks.mqar import MqarConfig, MqarTask
from memwrite.tasks.order import OrderConfig, OrderTask
from memwrite.tasks.overwrite import OverwriteConfig, OverwriteTask
from memwrite.tasks.phonebook import PhonebookConfig, PhonebookTask
from memwrite.tasks.questions import QuestionsTask
from memwrite.tasks.squad import SquadConfig
from memwrite.tasks.synthetic import SyntheticConfig
from memwrite.tasks.text import TextConfig, TextTask


def _task(
    name: str, summary: str, config: type[Any], build: Callable[[Any, Tokenizer], Task]
) -> TaskPlugin:
    return TaskPlugin(api=2, name=name, summary=summary, config=config, build=build)


@hookimpl
def memwrite_tasks() -> Sequence[TaskPlugin]:
    """What is drawn at random, and what comes from files."""
    return [
        _task("kv-retrieval", "keys and values, all asked for", KvConfig, KvTask),
        _task("mqar", "single tokens for keys and values", MqarConfig, MqarTask),
        _task("copying", "a random string, said again", SyntheticConfig, CopyingTask),
        _task("phonebook", "numbers by names, in words", PhonebookConfig, PhonebookTask),
        _task(
            "overwrite", "keys that come again, the last value wins", OverwriteConfig, OverwriteTask
        ),
        _task("correlated-keys", "keys that are nearly the same", CorrelatedConfig, CorrelatedTask),
        _task("order", "what came after an item, or before it", OrderConfig, OrderTask),
        _task("babi", "questions on stories, from bAbI files", BabiConfig, QuestionsTask),
        _task("squad", "questions on paragraphs, SQuAD JSON", SquadConfig, QuestionsTask),
        _task("locomo", "questions on conversations, LoCoMo JSON", LocomoConfig, QuestionsTask),
        _task("text", "language modelling on plain text", TextConfig, TextTask),
        _task(
            "continuation",
            "the text that follows a text that was written",
            ContinuationConfig,
            ContinuationTask,
        ),
        _task(
            "reconstruction",
            "a text that was written, read back",
            ReconstructionConfig,
            ReconstructionTask,
        ),
    ]
