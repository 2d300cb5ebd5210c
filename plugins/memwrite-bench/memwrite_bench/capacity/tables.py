"""The report's tables, in words: every number in them is one of the report's JSON, rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from memwrite_bench.capacity.summary import Group, Row


@dataclass(frozen=True)
class Table:
    """A table of text: the heads of its columns, and rows of as many cells."""

    heads: list[str]
    rows: list[list[str]]


def share(value: float) -> str:
    """Format 0.974 as "97.4%"."""
    return f"{value:.1%}"


def bits(value: float) -> str:
    """Format a number with one decimal."""
    return f"{value:.1f}"


def rate(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    return f"{Decimal(f'{value:.3g}'):f}"


def count(value: float) -> str:
    """Format a whole number."""
    return f"{value:,.0f}"


def duration(value: float) -> str:
    """Format seconds as "0.42 ms", "38 ms", "1.5 s" or "150 s"."""
    number, unit = (1000 * value, "ms") if value < 0.9995 else (value, "s")
    digits = max(0, 1 - math.floor(math.log10(number))) if number else 0
    return f"{number:,.{digits}f} {unit}"


def times(value: float) -> str:
    """Format a ratio."""
    return f"{value:.2f}×"


Format = Callable[[float], str]
Column = Callable[[Row], str]


def _of(name: str, show: Format) -> Column:
    """Show the mean of a figure over runs, with their range where they differ; or why there is none."""

    def cell(row: Row) -> str:
        figure = row.figures[name]
        if figure is None or show(figure.least) == show(figure.most):
            return _mean(row, name, show)
        return f"{_mean(row, name, show)} ({show(figure.least)} to {show(figure.most)})"

    return cell


def _interval(row: Row) -> str:
    """Show the interval of exact match."""
    exact = row.figures["exact_match"]
    if exact is None or exact.interval is None:
        return _nothing(row)
    return f"{share(exact.interval.low)} to {share(exact.interval.high)}"


_RECALL: Mapping[str, Column] = {
    "exact match": _of("exact_match", share),
    "95% interval": _interval,
    "set recall": _of("set_recall", share),
    "binding": _of("binding", share),
}
_BITS: Mapping[str, Column] = {
    "bits recalled": _of("bits_recalled", bits),
    "bits gained": _of("bits_gained", bits),
    "bits per float": _of("bits_per_float", rate),
    "gained per float": _of("bits_gained_per_float", rate),
}
_TIME: Mapping[str, Column] = {
    "WRITE": _of("write", duration),
    "WRITE / prefill": _of("write_ratio", times),
    "READ": _of("read", duration),
    "READ / visible": _of("read_ratio", times),
}
_BATCH: Mapping[str, Column] = {
    "contexts": _of("batch", count),
    "WRITE": _of("batch_write", duration),
    "WRITE / prefill": _of("batch_write_ratio", times),
    "READ / visible": _of("batch_read_ratio", times),
}
_BYTES: Mapping[str, Column] = {
    "state numbers": _of("state_floats", count),
    "state bytes": _of("state_bytes", count),
    "KV-cache bytes": _of("kv_bytes", count),
}
_CONTROLS: Mapping[str, Column] = {
    "its own state": _of("exact_match", share),
    "zeros": _of("zero_state", share),
    "another's state": _of("shuffled_state", share),
    "context visible": _of("context_visible", share),
}


def summary(groups: Sequence[Group]) -> Table:
    """Tabulate each group at the N that it was trained on, at every K."""
    heads = ["runs", "N, K", "exact match", "95% interval", "over", "bytes", "bits per float"]
    return Table(
        heads,
        [
            _summary_row(group, row)
            for group in groups
            for row in group.rows
            if row.pairs == group.pairs
        ],
    )


def _summary_row(group: Group, row: Row) -> list[str]:
    exact = row.figures["exact_match"]
    return [
        group.name,
        f"{row.pairs}" + ("" if row.steps is None else f", {row.steps}"),
        _of("exact_match", share)(row),
        _interval(row),
        exact.interval.over if exact and exact.interval else "–",
        _mean(row, "state_bytes", count),
        _mean(row, "bits_per_float", rate),
    ]


def recall(groups: Sequence[Group]) -> Table:
    """Tabulate what was recalled, at every N and K."""
    return _full(groups, _RECALL)


def information(groups: Sequence[Group]) -> Table:
    """Tabulate what was recalled in bits, at every N and K."""
    return _full(groups, _BITS)


def time(groups: Sequence[Group]) -> Table:
    """Tabulate how long WRITE and READ of one context took, at every N and K."""
    return _full(groups, _TIME)


def batch_time(groups: Sequence[Group]) -> Table:
    """Tabulate how long WRITE and READ of many contexts at once took, at every N and K."""
    return _full(groups, _BATCH)


def sizes(groups: Sequence[Group]) -> Table:
    """Tabulate how large states and KV caches are, at every N and K."""
    return _full(groups, _BYTES)


def controls(groups: Sequence[Group]) -> Table:
    """Tabulate exact match from other states than a context's own, and from the context."""
    return _full(groups, _CONTROLS)


def _full(groups: Sequence[Group], columns: Mapping[str, Column]) -> Table:
    return Table(
        ["runs", "N", "K", *columns],
        [
            [group.name, str(row.pairs), _steps(row), *(cell(row) for cell in columns.values())]
            for group in groups
            for row in group.rows
        ],
    )


def _steps(row: Row) -> str:
    return "–" if row.steps is None else str(row.steps)


def _mean(row: Row, name: str, show: Format) -> str:
    mean = row.mean(name)
    if mean is None:
        return _nothing(row)
    return show(mean) + (f", {len(row.failures)} failed" if row.failures else "")


def _nothing(row: Row) -> str:
    if row.measured:
        return "–"
    return "diverged" if row.diverged else "too long"


def plain_text(table: Table) -> list[str]:
    """Lay out lines of columns as wide as they need to be; the first is flush left, the others right."""
    rows = [table.heads, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
