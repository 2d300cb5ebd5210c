"""Results as tables for documents."""

from __future__ import annotations

from collections.abc import Sequence

from memwrite_specs.runner import Result


def table(results: Sequence[Result]) -> str:
    """Make a Markdown table of a row for every pair, with the reasons of gaps below it.

    A row says how many of the laws that bind the pair it keeps, which of them it does not, and which laws do not bind it.
    """
    pairs: dict[str, list[Result]] = {}
    for result in results:
        pairs.setdefault(result.pair, []).append(result)
    lines = [row("pair", "laws held", "not held", "laws that do not bind"), row(*["---"] * 4)]
    for pair, own in pairs.items():
        held = sum(result.outcome == "held" for result in own)
        binding = sum(result.outcome != "n/a" for result in own)
        others = [r for r in own if r.outcome not in ("held", "n/a")]
        broken = ", ".join(f"`{r.law}` ({r.outcome})" for r in others)
        free = ", ".join(f"`{r.law}`" for r in own if r.outcome == "n/a")
        lines.append(row(pair, f"{held} of {binding}", broken or "none", free or "none"))
    gaps = [r for r in results if r.outcome == "gap"]
    if gaps:
        lines += ["", *(f"- gap `{gap.law}` of {gap.pair}: {gap.why}" for gap in gaps)]
    return "\n".join(lines)


def row(*cells: str) -> str:
    """Make a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
