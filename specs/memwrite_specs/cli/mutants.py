"""`memwrite mutants`: the tests of the laws, as a matrix."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memwrite_specs.mutants import Mutant


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--own", is_flag=True, help="Only the law that must kill each mutant: a minute, not ten."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print a table.")
def mutants(names: tuple[str, ...], own: bool, as_json: bool, markdown: bool) -> None:
    """Hold mutants to the laws: writers and readers broken on purpose, all or those of NAMES, each of which one law must kill.

    Exit code 0 only if every mutant is killed by its law.
    """
    from memwrite.errors import ConfigError, did_you_mean
    from memwrite.utils.progress import show_progress, track
    from memwrite_specs.hypothesis_driver import keep_notes_elsewhere
    from memwrite_specs.laws import LAWS
    from memwrite_specs.mutants import MUTANTS

    keep_notes_elsewhere()
    for name in names:
        if name not in MUTANTS:
            raise ConfigError(f"no mutant is called '{name}' ({did_you_mean(name, MUTANTS)})")
    chosen = [MUTANTS[name] for name in names or MUTANTS]
    with show_progress():
        killers = {
            mutant.name: _killers(mutant, [mutant.law] if own else list(LAWS))
            for mutant in track(chosen, "mutants", "mutant")
        }
    alive = [mutant.name for mutant in chosen if mutant.law not in killers[mutant.name]]
    if as_json:
        click.echo(json.dumps({"killers": killers, "alive": alive}))
    elif markdown:
        click.echo(_table(chosen, killers))
    else:
        for mutant in chosen:
            others = [law for law in killers[mutant.name] if law != mutant.law]
            mark = "ALIVE " if mutant.name in alive else "killed"
            more = f" (and {', '.join(others)})" if others else ""
            click.echo(f"{mark}  {mutant.name} by {mutant.law}{more}")
        click.echo(f"{len(chosen) - len(alive)} of {len(chosen)} mutants killed by their laws")
    if alive:
        sys.exit(1)


def _killers(mutant: Mutant, names: list[str]) -> list[str]:
    """Return the laws of `names` that `mutant` breaks; a process of its own tries it, as mutants leave things behind."""
    import torch

    from memwrite_specs.forked import ForkedProcess
    from memwrite_specs.laws import LAWS
    from memwrite_specs.runner import hold

    def broken() -> list[bool]:
        return [hold(mutant.pair, LAWS[name]).outcome == "broken" for name in names]

    with ForkedProcess(lambda _: {"broken": torch.tensor(broken())}, seconds=600) as process:
        found = process.call()["broken"].tolist()
    return [name for name, hit in zip(names, found, strict=True) if hit]


def _table(chosen: list[Mutant], killers: dict[str, list[str]]) -> str:
    """Make a Markdown table of a row for every mutant and a column for every law, by its number."""
    from memwrite_specs.cli.report import row
    from memwrite_specs.laws import LAWS

    numbers = {name: str(i) for i, name in enumerate(LAWS, 1)}
    lines = [row("mutant", *numbers.values()), row(*["---"] * (len(numbers) + 1))]
    for mutant in chosen:
        hits = killers[mutant.name]
        marks = ["" if n not in hits else "**✗**" if n == mutant.law else "✗" for n in numbers]
        lines.append(row(f"`{mutant.name}`", *marks))
    legend = ", ".join(f"{number} `{name}`" for name, number in numbers.items())
    return "\n".join([*lines, "", f"Laws: {legend}. Bold: the law that must kill the mutant."])
