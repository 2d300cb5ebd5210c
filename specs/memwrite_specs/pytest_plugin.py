"""What pytest prints at its end: how many laws ran, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from memwrite_specs.law import OUTCOMES

PROPERTY = "memwrite-law"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Note the outcome of a law on its report, which reaches the process that prints."""
    report = yield
    spec = getattr(item, "callspec", None)
    law = None if spec is None else spec.params.get("law")
    result = getattr(law, "result", None)
    if call.when == "call" and result is not None:
        report.user_properties.append((PROPERTY, [result.pair, result.outcome]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many laws had which outcome, in one line for all pairs."""
    found = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
    ]
    if not found:
        return
    counts = Counter(outcome for _, outcome in found)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    pairs = len({pair for pair, _ in found})
    terminalreporter.write_line(f"memwrite laws: {words}; {pairs} pair{'s' * (pairs > 1)}")
