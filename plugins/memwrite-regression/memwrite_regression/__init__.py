"""memwrite-regression: memories that are the ridge regression of values on keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from memwrite.plugins import Capabilities, WriteReport, WriterPlugin, hookimpl
from memwrite.state import StateKind
from memwrite_regression.config import RidgeConfig
from memwrite_regression.kind import GRAM
from memwrite_regression.ridge import RidgeWriter

__all__ = ["GRAM", "RIDGE", "RidgeConfig", "RidgeWriter", "memwrite_kinds", "memwrite_writers"]


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


@hookimpl
def memwrite_kinds() -> Sequence[StateKind]:
    """Declare the kind of state of a regression."""
    return [GRAM]


@hookimpl
def memwrite_writers() -> Sequence[WriterPlugin]:
    """Declare ridge regression."""
    return [RIDGE]
