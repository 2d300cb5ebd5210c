"""Results as tables for documents."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite_specs.runner import Result

MARKS = {"held": "✓", "n/a": "·", "gap": "gap", "not run": "?", "broken": "✗"}


def table(results: Sequence[Result]) -> str:
    """Make a Markdown table of a row for every law and a column for every pair, with the reasons of gaps below it."""
    pairs = list(dict.fromkeys(result.pair for result in results))
    laws = list(dict.fromkeys(result.law for result in results))
    found = {(result.law, result.pair): result for result in results}
    lines = [row("law", *pairs), row(*["---"] * (len(pairs) + 1))]
    for law in laws:
        marks = [MARKS[found[law, p].outcome] if (law, p) in found else "" for p in pairs]
        lines.append(row(f"`{law}`", *marks))
    lines += ["", "✓ held · not declared, so not bound ? not run"]
    gaps = [r for r in results if r.outcome == "gap"]
    lines += [f"- gap `{gap.law}` of {gap.pair}: {gap.why}" for gap in gaps]
    return "\n".join(lines)


def row(*cells: str) -> str:
    """Make a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
