"""memwrite-kv: memories of the model's own keys and values, chosen without any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin, hookimpl
from memwrite.protocols import Backbone, Writer
from memwrite.state import StateKind
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Score
from memwrite_kv.compaction import CompactConfig, CompactWriter, MatchingConfig
from memwrite_kv.fastgen import FastGenConfig, FastGenWriter
from memwrite_kv.pooling import MeanPoolWriter
from memwrite_kv.scores.accumulated_attention import (
    AccumulatedAttention,
    AccumulatedAttentionConfig,
)
from memwrite_kv.scores.expected_attention import ExpectedAttention, ExpectedAttentionConfig
from memwrite_kv.scores.first_and_last import FirstAndLast, FirstAndLastConfig
from memwrite_kv.scores.key_diversity import KeyDiversity
from memwrite_kv.scores.key_norm import KeyNorm
from memwrite_kv.scores.ladder import Ladder, LadderConfig
from memwrite_kv.scores.last_queries import LastQueries, LastQueriesConfig
from memwrite_kv.scores.random import Random
from memwrite_kv.scores.reconstruction import ReconstructionConfig, ReconstructionWriter
from memwrite_kv.thin import THIN, NoParams, ThinKeyValueReader
from memwrite_kv.think import ThinkConfig, ThinkWriter
from memwrite_kv.writer import SelectionWriter

__all__ = [
    "READER",
    "WRITERS",
    "BudgetConfig",
    "Score",
    "SelectionWriter",
    "memwrite_kinds",
    "memwrite_readers",
    "memwrite_writers",
    "selection",
]


def selection(
    name: str, summary: str, config: type[BudgetConfig], score: Callable[[Any], Score]
) -> WriterPlugin:
    """Declare a writer that keeps the best slots by a score, which is made of the writer's parameters."""

    def build(params: BudgetConfig, backbone: Backbone) -> SelectionWriter:
        return SelectionWriter(params, backbone, score(params))

    return _plugin(name, summary, config, build)


def _plugin(
    name: str,
    summary: str,
    config: type[BudgetConfig],
    build: Callable[[Any, Backbone], Writer],
    emits: str = "keyvalue",
) -> WriterPlugin:
    return WriterPlugin(
        api=2,
        name=name,
        summary=summary,
        config=config,
        build=build,
        emits=emits,
        capabilities=Capabilities(streaming=True),
        slots="slots",
    )


def _expected(params: ExpectedAttentionConfig, backbone: Backbone) -> SelectionWriter:
    return SelectionWriter(params, backbone, ExpectedAttention(params, backbone))


WRITERS = [
    _plugin(
        "compact",
        "slots that the context's queries would attend to from behind it, with refitted values",
        CompactConfig,
        CompactWriter,
    ),
    selection(
        "h2o",
        "slots that the context itself attends to",
        AccumulatedAttentionConfig,
        AccumulatedAttention,
    ),
    selection("snapkv", "slots that the last tokens attend to", LastQueriesConfig, LastQueries),
    _plugin(
        "expected-attention",
        "slots that queries like the context's would attend to",
        ExpectedAttentionConfig,
        _expected,
    ),
    _plugin(
        "kvzip",
        "slots that are attended to while the context is repeated",
        ReconstructionConfig,
        ReconstructionWriter,
    ),
    _plugin(
        "attention-matching",
        "slots with a bias and values fitted to the queries of a repetition",
        MatchingConfig,
        CompactWriter,
    ),
    selection("keydiff", "slots whose keys are unlike the others", BudgetConfig, KeyDiversity),
    selection("knorm", "slots whose keys have a small norm", BudgetConfig, KeyNorm),
    selection("streaming-llm", "the first slots and the last", FirstAndLastConfig, FirstAndLast),
    selection("lacache", "in each layer other stretches of the text", LadderConfig, Ladder),
    _plugin(
        "think",
        "slots that the last tokens attend to, with keys of the channels that matter to these tokens",
        ThinkConfig,
        ThinkWriter,
        THIN.name,
    ),
    _plugin(
        "fastgen",
        "in each head the slots of the cheapest policy that recovers its attention",
        FastGenConfig,
        FastGenWriter,
    ),
    _plugin("mean-pool", "means of neighbouring slots", BudgetConfig, MeanPoolWriter),
    selection("random-slots", "control: slots without any reason", BudgetConfig, Random),
]
READER = ReaderPlugin(
    api=2,
    name="thin-key-value",
    summary="keys of fewer channels, and values, that every layer attends to",
    config=NoParams,
    build=ThinKeyValueReader,
    accepts=ThinKeyValueReader.accepts,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state whose keys have fewer channels."""
    return [THIN]


@hookimpl
def memwrite_readers() -> Sequence[ReaderPlugin]:
    """Declare the reader of such states."""
    return [READER]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare the writers of the family."""
    return WRITERS
