"""memwrite-regression: memories that are the ridge regression of values on keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from memwrite.plugins import Capabilities, WriteReport, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_regression.config import MesaConfig, RidgeConfig
from memwrite_regression.kind import GRAM
from memwrite_regression.mesa import MesaWriter
from memwrite_regression.ridge import RidgeWriter

__all__ = [
    "GRAM",
    "MESA",
    "RIDGE",
    "MesaConfig",
    "MesaWriter",
    "RidgeConfig",
    "RidgeWriter",
    "memwrite_kinds",
    "memwrite_writers",
]


def _report(trace: Mapping[str, Tensor]) -> WriteReport:
    return WriteReport([f"condition number of the keys: {float(trace['condition'][-1]):,.3g}"])


RIDGE = WriterPlugin(
    api=2,
    name="ridge",
    summary="ridge regression of values on keys; texts can be added, merged and taken out again",
    config=RidgeConfig,
    build=RidgeWriter,
    emits="gram",
    capabilities=Capabilities(
        streaming=True, differentiable=True, order_free=True, mergeable=True, deletion=True
    ),
    report=_report,
)

MESA = WriterPlugin(
    api=2,
    name="mesa",
    summary="the Mesa layer: ridge regression that forgets, online",
    config=MesaConfig,
    build=MesaWriter,
    emits="gram",
    capabilities=Capabilities(streaming=True, chunk_exact=True, differentiable=True, online=True),
    report=_report,
)


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of a regression."""
    return [GRAM]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare ridge regression, and the Mesa layer."""
    return [RIDGE, MESA]
