"""What to conclude from a capacity report, in sentences that its figures bear out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memwrite_bench.capacity.figures import FEWEST_RUNS
from memwrite_bench.capacity.summary import Group, Row
from memwrite_bench.capacity.tables import count, duration, rate, share, times

#: The exact match from which on pairs count as held.
HELD = 0.95
#: What a reader may answer without its own state before that is worth a sentence.
_GUESSED = 0.05


def conclusions(groups: Sequence[Group]) -> list[str]:
    """Return what each group of runs holds, which is densest, what it costs, and what cannot be concluded."""
    memories = [group for group in groups if not group.baseline]
    return [
        *(_held(group) for group in memories),
        *_densest(memories),
        *_guessing(memories),
        *_few(memories),
    ]


def _held(group: Group) -> str:
    rows = [row for row in group.rows if (row.mean("exact_match") or 0.0) >= HELD]
    if rows:
        row = max(rows, key=lambda row: (row.pairs, -(row.steps or 0)))
        return f"{group.label} holds {row.pairs} pairs{_by(row)} in {_bytes(row)}: {_exact(row)} of them come back right{_time(row)}."
    measured = [row for row in group.rows if row.mean("exact_match") is not None]
    if not measured:
        return f"{group.label} could not be measured."
    row = max(measured, key=lambda row: row.mean("exact_match") or 0.0)
    return (
        f"{group.label} holds no number of pairs that was measured at {HELD:.0%}: at best {_exact(row)} of {row.pairs}{_by(row)}, "
        f"in {_bytes(row)}."
    )


def _densest(groups: Sequence[Group]) -> Iterator[str]:
    found = [
        (row.mean("bits_per_float") or 0.0, group, row) for group in groups for row in group.rows
    ]
    if len(groups) > 1 and any(value for value, _, _ in found):
        value, group, row = max(found, key=lambda point: point[0])
        yield f"The densest state is that of {group.label}: {rate(value)} bits per number, at {row.pairs} pairs{_by(row)}."


def _guessing(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        for name, what in (("zero_state", "zeros"), ("shuffled_state", "another context's state")):
            most = max((row.mean(name) or 0.0 for row in group.rows), default=0.0)
            if most > _GUESSED:
                yield f"Not all that {group.label} answers comes from its state: it answers {share(most)} from {what}."


def _few(groups: Sequence[Group]) -> Iterator[str]:
    if few := [group.label for group in groups if group.few]:
        yield (
            f"No claim that one is better than another can rest on {', '.join(few)}: fewer than {FEWEST_RUNS} training seeds."
        )


def _time(row: Row) -> str:
    write, ratio = row.mean("write"), row.mean("write_ratio")
    if not write:
        return ""
    than = f", {times(ratio)} the model's own prefill" if ratio else ""
    return f" (written in {duration(write)}{than})"


def _exact(row: Row) -> str:
    return share(row.mean("exact_match") or 0.0)


def _by(row: Row) -> str:
    return "" if row.steps is None else f" with K = {row.steps}"


def _bytes(row: Row) -> str:
    size, cache = row.mean("state_bytes") or 0.0, row.mean("kv_bytes")
    return f"{count(size)} bytes" + (
        f" ({size / cache:.1%} of the key-value cache)" if cache else ""
    )
