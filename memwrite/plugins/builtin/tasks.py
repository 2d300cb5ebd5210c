"""The tasks that come with memwrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from memwrite.backbones.tokenizers import Tokenizer
from memwrite.evaluation import key_value, language
from memwrite.plugins import TaskPlugin, hookimpl
from memwrite.tasks import files, synthetic
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
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask
from memwrite.tasks.language import LanguageConfig, LanguageTask
from memwrite.tasks.locomo import LocomoConfig
from memwrite.tasks.longmemeval import LongMemEvalConfig
from memwrite.tasks.memory_agent_bench import MemoryAgentBenchConfig
from memwrite.tasks.mixed import MixedConfig, MixedTask
from memwrite.tasks.mqar import MqarConfig, MqarTask
from memwrite.tasks.order import OrderConfig, OrderTask
from memwrite.tasks.overwrite import OverwriteConfig, OverwriteTask
from memwrite.tasks.phonebook import PhonebookConfig, PhonebookTask
from memwrite.tasks.qa import QaConfig
from memwrite.tasks.questions import QuestionsTask
from memwrite.tasks.squad import SquadConfig
from memwrite.tasks.synthetic import SyntheticConfig
from memwrite.tasks.text import TextConfig, TextTask

Build = Callable[[Any, Tokenizer], Task]


def _synthetic(name: str, summary: str, config: type[SyntheticConfig], build: Build) -> TaskPlugin:
    return TaskPlugin(
        api=2,
        name=name,
        summary=summary,
        config=config,
        build=build,
        evaluation_params=synthetic.evaluation_params,
        examples="examples",
    )


def _pairs(name: str, summary: str, config: type[SyntheticConfig], build: Build) -> TaskPlugin:
    """Declare a synthetic task whose values are scored beside their keys."""
    return replace(_synthetic(name, summary, config, build), evaluate=key_value.evaluate)


def _from_files(
    name: str, summary: str, config: type[files.FilesConfig], build: Build
) -> TaskPlugin:
    return TaskPlugin(
        api=2,
        name=name,
        summary=summary,
        config=config,
        build=build,
        evaluation_params=files.evaluation_params,
    )


@hookimpl
def memwrite_tasks() -> Sequence[TaskPlugin]:
    """Return the tasks that are drawn at random, then those that are read from files."""
    return [
        _pairs("kv-retrieval", "keys and values, each key queried", KeyValueConfig, KeyValueTask),
        _synthetic("mqar", "single tokens for keys and values", MqarConfig, MqarTask),
        _synthetic("copying", "a random string, to be repeated", SyntheticConfig, CopyingTask),
        _synthetic("phonebook", "numbers by names, in words", PhonebookConfig, PhonebookTask),
        _pairs(
            "overwrite", "keys that come again, the last value wins", OverwriteConfig, OverwriteTask
        ),
        _pairs(
            "correlated-keys", "keys that are nearly the same", CorrelatedConfig, CorrelatedTask
        ),
        _synthetic("order", "what came after an item, or before it", OrderConfig, OrderTask),
        _from_files("babi", "questions on stories, from bAbI files", BabiConfig, QuestionsTask),
        _from_files("squad", "questions on paragraphs, SQuAD JSON", SquadConfig, QuestionsTask),
        _from_files("qa", "questions on your own texts, JSONL", QaConfig, QuestionsTask),
        _from_files(
            "locomo", "questions on conversations, LoCoMo JSON", LocomoConfig, QuestionsTask
        ),
        _from_files(
            "longmemeval",
            "questions on a user's chats, LongMemEval JSON",
            LongMemEvalConfig,
            QuestionsTask,
        ),
        _from_files(
            "memory-agent-bench",
            "many questions on long texts, MemoryAgentBench",
            MemoryAgentBenchConfig,
            QuestionsTask,
        ),
        TaskPlugin(
            api=2,
            name="mixed-questions",
            summary="questions of squad and babi, together",
            config=MixedConfig,
            build=MixedTask,
        ),
        _from_files("text", "language modelling on plain text", TextConfig, TextTask),
        _from_files(
            "continuation",
            "the text that follows a text that was written",
            ContinuationConfig,
            ContinuationTask,
        ),
        replace(
            _from_files(
                "language",
                "text that goes on behind a passage that was written: value kept",
                LanguageConfig,
                LanguageTask,
            ),
            evaluate=language.evaluate,
            examples="examples",
        ),
        _from_files(
            "reconstruction",
            "a text that was written, read back",
            ReconstructionConfig,
            ReconstructionTask,
        ),
    ]
