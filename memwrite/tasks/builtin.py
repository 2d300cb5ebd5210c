"""The tasks that come with memwrite."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite.plugins import TaskPlugin, hookimpl
from memwrite.tasks.babi import BabiConfig
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


@hookimpl
def memwrite_tasks() -> Sequence[TaskPlugin]:
    """What is drawn at random, and what comes from files."""
    return [
        TaskPlugin(1, "kv-retrieval", "keys and values, all asked for", KvConfig, KvTask),
        TaskPlugin(1, "mqar", "single tokens for keys and values", MqarConfig, MqarTask),
        TaskPlugin(1, "copying", "a random string, said again", SyntheticConfig, CopyingTask),
        TaskPlugin(1, "phonebook", "numbers by names, in words", PhonebookConfig, PhonebookTask),
        TaskPlugin(
            1,
            "overwrite",
            "keys that come again, the last value wins",
            OverwriteConfig,
            OverwriteTask,
        ),
        TaskPlugin(
            1, "correlated-keys", "keys that are nearly the same", CorrelatedConfig, CorrelatedTask
        ),
        TaskPlugin(1, "order", "what came after an item, or before it", OrderConfig, OrderTask),
        TaskPlugin(1, "babi", "questions on stories, from bAbI files", BabiConfig, QuestionsTask),
        TaskPlugin(1, "squad", "questions on paragraphs, SQuAD JSON", SquadConfig, QuestionsTask),
        TaskPlugin(
            1, "locomo", "questions on conversations, LoCoMo JSON", LocomoConfig, QuestionsTask
        ),
        TaskPlugin(1, "text", "language modelling on plain text", TextConfig, TextTask),
        TaskPlugin(
            1,
            "continuation",
            "the text that follows a text that was written",
            ContinuationConfig,
            ContinuationTask,
        ),
        TaskPlugin(
            1,
            "reconstruction",
            "a text that was written, read back",
            ReconstructionConfig,
            ReconstructionTask,
        ),
    ]
