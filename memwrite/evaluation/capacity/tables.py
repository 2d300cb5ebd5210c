"""The report's tables, in words: every number in them is one of the report's JSON, rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memwrite.evaluation.capacity.figures import Spread
from memwrite.evaluation.capacity.summary import Group, Row


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

_RECALL: Mapping[str, tuple[str, Format]] = {
    "exact match": ("exact_match", share),
    "characters": ("token_accuracy", share),
    "set recall": ("set_recall", share),
    "binding": ("binding", share),
    "bits recalled": ("bits_recalled", bits),
    "bits gained": ("bits_gained", bits),
    "bits per float": ("bits_per_float", rate),
    "gained per float": ("bits_gained_per_float", rate),
}
_TIME: Mapping[str, tuple[str, Format]] = {
    "WRITE, ms": ("write", milliseconds),
    "prefill, ms": ("prefill", milliseconds),
    "ratio": ("write_ratio", times),
    "READ, ms": ("read", milliseconds),
    "visible, ms": ("visible_read", milliseconds),
    "ratio ": ("read_ratio", times),
    "batch": ("batch", count),
    "WRITE of batch, ms": ("batch_write", milliseconds),
    "prefill of batch, ms": ("batch_prefill", milliseconds),
    "ratio  ": ("batch_write_ratio", times),
    "READ of batch, ms": ("batch_read", milliseconds),
    "visible of batch, ms": ("batch_visible_read", milliseconds),
    "ratio   ": ("batch_read_ratio", times),
}
_BYTES: Mapping[str, tuple[str, Format]] = {
    "state numbers": ("state_floats", count),
    "state bytes": ("state_bytes", count),
    "KV-cache bytes": ("kv_bytes", count),
}
_CONTROLS: Mapping[str, tuple[str, Format]] = {
    "its own state": ("exact_match", share),
    "zeros": ("zero_state", share),
    "another's state": ("shuffled_state", share),
    "context visible": ("context_visible", share),
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
    interval = exact.interval if exact else None
    return [
        group.name,
        group.writer,
        str(group.seeds),
        f"N={group.pairs}" + (f", K={_range(group.steps)}" if group.steps else ""),
        _steps(row),
        _cell(row, "state_floats", count),
        _cell(row, "exact_match", share),
        f"{share(exact.least)} to {share(exact.most)}" if exact and len(exact.runs) > 1 else "–",
        f"{share(interval.low)} to {share(interval.high)}" if interval else "–",
        interval.over if interval else "–",
        _cell(row, "binding", share),
        _cell(row, "bits_gained", bits),
        _cell(row, "bits_per_float", rate),
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


def _full(groups: Sequence[Group], columns: Mapping[str, tuple[str, Format]]) -> Table:
    return Table(
        ["runs", "N", "K", *(head.strip() for head in columns)],
        [
            [
                group.name,
                str(row.pairs),
                _steps(row),
                *(_cell(row, name, show, of_runs=True) for name, show in columns.values()),
            ]
            for group in groups
            for row in group.rows
        ],
    )


def _steps(row: Row) -> str:
    return "–" if row.steps is None else str(row.steps)


def _cell(row: Row, name: str, show: Format, of_runs: bool = False) -> str:
    """The mean over runs and, `of_runs` with several, their range; or why there is none."""
    figure = row.figures[name]
    if figure is None:
        return _nothing(row)
    text = show(figure.mean)
    if of_runs and _differ(figure, show):
        text += f" ({show(figure.least)} to {show(figure.most)})"
    return text + (f", {len(row.failures)} failed" if row.failures else "")


def _differ(figure: Spread, show: Format) -> bool:
    return show(figure.least) != show(figure.most)


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
