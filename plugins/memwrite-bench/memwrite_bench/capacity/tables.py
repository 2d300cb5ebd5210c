"""The report's tables, in words: every number in them is one of the report's JSON, rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memwrite_bench.capacity.summary import Group, Row


@dataclass(frozen=True)
class Table:
    """Heads of its columns, and rows of as many cells."""

    heads: list[str]
    rows: list[list[str]]


def share(value: float) -> str:
    """0.974 as "97.4%"."""
    return f"{value:.1%}"


def bits(value: float) -> str:
    """With one digit behind the point."""
    return f"{value:.1f}"


def rate(value: float) -> str:
    """With three significant digits."""
    return f"{value:.3g}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def milliseconds(value: float) -> str:
    """Of seconds."""
    return f"{1000 * value:.3g}"


def times(value: float) -> str:
    """A multiple."""
    return f"{value:.2f}×"


Format = Callable[[float], str]
Column = Callable[[Row], str]


def _of(name: str, show: Format) -> Column:
    """The mean of a figure over runs, with their range where they differ; or why there is none."""

    def cell(row: Row) -> str:
        figure = row.figures[name]
        if figure is None or show(figure.least) == show(figure.most):
            return _mean(row, name, show)
        return f"{_mean(row, name, show)} ({show(figure.least)} to {show(figure.most)})"

    return cell


def _interval(row: Row) -> str:
    """Of exact match."""
    exact = row.figures["exact_match"]
    if exact is None or exact.interval is None:
        return _nothing(row)
    return f"{share(exact.interval.low)} to {share(exact.interval.high)}"


_RECALL: Mapping[str, Column] = {
    "exact match": _of("exact_match", share),
    "95% interval": _interval,
    "characters": _of("token_accuracy", share),
    "set recall": _of("set_recall", share),
    "binding": _of("binding", share),
    "bits recalled": _of("bits_recalled", bits),
    "bits gained": _of("bits_gained", bits),
    "bits per float": _of("bits_per_float", rate),
    "gained per float": _of("bits_gained_per_float", rate),
}
_TIME: Mapping[str, Column] = {
    "WRITE, ms": _of("write", milliseconds),
    "prefill, ms": _of("prefill", milliseconds),
    "WRITE / prefill": _of("write_ratio", times),
    "READ, ms": _of("read", milliseconds),
    "visible, ms": _of("visible_read", milliseconds),
    "READ / visible": _of("read_ratio", times),
    "batch": _of("batch", count),
    "WRITE of batch, ms": _of("batch_write", milliseconds),
    "prefill of batch, ms": _of("batch_prefill", milliseconds),
    "WRITE / prefill of batch": _of("batch_write_ratio", times),
    "READ of batch, ms": _of("batch_read", milliseconds),
    "visible of batch, ms": _of("batch_visible_read", milliseconds),
    "READ / visible of batch": _of("batch_read_ratio", times),
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
    """Each group at the N that it was trained on, at every K, and the most bits per float it came to at any N."""
    heads = ["runs", "writer", "seeds", "trained on", "K", "state numbers", "exact match"]
    heads += ["runs' range", "95% interval", "over", "binding", "bits gained", "bits per float"]
    return Table(
        [*heads, "most bits per float, at N"],
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
        group.writer,
        str(group.seeds),
        f"N={group.pairs}" + (f", K={_range(group.steps)}" if group.steps else ""),
        _steps(row),
        _mean(row, "state_floats", count),
        _mean(row, "exact_match", share),
        f"{share(exact.least)} to {share(exact.most)}" if exact and len(exact.runs) > 1 else "–",
        _interval(row),
        exact.interval.over if exact and exact.interval else "–",
        _mean(row, "binding", share),
        _mean(row, "bits_gained", bits),
        _mean(row, "bits_per_float", rate),
        _most(group, row.steps),
    ]


def _most(group: Group, steps: int | None) -> str:
    told = [
        (mean, row)
        for row in group.rows
        if row.steps == steps
        if (mean := row.mean("bits_per_float")) is not None
    ]
    if not told:
        return "–"
    mean, row = max(told, key=lambda point: point[0])
    return f"{rate(mean)} at {row.pairs}"


def _range(steps: Sequence[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def recall(groups: Sequence[Group]) -> Table:
    """What was recalled, at every N and K."""
    return _full(groups, _RECALL)


def time(groups: Sequence[Group]) -> Table:
    """How long WRITE and READ took, at every N and K."""
    return _full(groups, _TIME)


def sizes(groups: Sequence[Group]) -> Table:
    """How large states and KV caches are, at every N and K."""
    return _full(groups, _BYTES)


def controls(groups: Sequence[Group]) -> Table:
    """Exact match from other states than a context's own, and from the context."""
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
    """Lines of columns as wide as they need to be; the first is flush left, the others right."""
    rows = [table.heads, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
