"""`memwrite check`: hold plugins to the laws, without pytest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memwrite_specs.pair import Pair
    from memwrite_specs.pytest_binding import BoundLaw, Subject
    from memwrite_specs.runner import Result


@click.command()
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every installed pair that fits.")
@click.option("--reader", help="By default the kit's own reader of the writer's kind of state.")
@click.option("--law", "names", multiple=True, help="Only this law; may be given many times.")
@click.option(
    "--backbone",
    default="tiny",
    show_default=True,
    help="Model to hold it on; 'all' for every family.",
)
@click.option("--seed", default=0, show_default=True, help="Of the cases that are drawn.")
@click.option(
    "--seeds", default=1, show_default=True, help="So many seeds for each law, from --seed on."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print a table with a row for each pair.")
def check(
    name: str | None,
    overrides: tuple[str, ...],
    everything: bool,
    reader: str | None,
    names: tuple[str, ...],
    backbone: str,
    seed: int,
    seeds: int,
    as_json: bool,
    markdown: bool,
) -> None:
    """Hold the installed writer or reader NAME to the laws; exit code 0 only if every law that binds it held.

    OVERRIDES are parameters, as writer.params.slots=2 or reader.params.alpha=4. A law is held, n/a (it binds only those
    who declare a capability), a gap (known to be broken, with a reason), not run (so that nothing is known), or broken.
    """
    from memwrite.utils.progress import track
    from memwrite_specs.cli.report import table
    from memwrite_specs.hypothesis_driver import keep_notes_elsewhere

    keep_notes_elsewhere()
    pairs = _pairs(name, overrides, everything, reader, backbone)
    quiet = as_json or markdown
    results: list[Result] = []
    for pair in track(pairs, "Checking", "pair") if quiet else pairs:
        bound = _bound(pair, names)
        if not quiet:
            click.echo(f"{pair}")
        for law in bound:
            result = _held(law, overrides, range(seed, seed + max(seeds, 1)))
            results.append(result)
            if not quiet and not law.blocked:
                _show(result)
        blocked = [law for law in bound if law.blocked]
        if blocked and not quiet:
            click.echo(f"  not run  {len(blocked)} other laws: the law 'contract' is broken")
            contract = blocked[0].contract
            if contract not in bound and contract is not None and contract.result is not None:
                click.echo("\n" + contract.result.why + "\n", err=True)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
    elif markdown:
        click.echo(table(results))
    else:
        click.echo(_summary(results))
    failed = [result for result in results if result.failed]
    if failed:
        if markdown:
            click.echo("\n\n".join(f"{r.law}: {r.why}" for r in failed), err=True)
        sys.exit(1)


def _pairs(
    name: str | None,
    overrides: Sequence[str],
    everything: bool,
    reader: str | None,
    backbone: str,
) -> list[Pair]:
    from memwrite.errors import ConfigError, PluginNotFound, did_you_mean
    from memwrite.plugins import registry
    from memwrite_specs.backbones import BACKBONES
    from memwrite_specs.pytest_binding import pair_of

    if backbone not in (*BACKBONES, "all"):
        raise ConfigError(f"no backbone '{backbone}': known are {', '.join(BACKBONES)}, all")
    if everything == (name is not None):
        raise ConfigError("give either the NAME of a writer or reader, or --all")
    where = list(BACKBONES) if backbone == "all" else [backbone]
    found = registry()
    if name is None:
        # A recurrent state needs a model with recurrent layers, which the kit's default is not.
        return [
            pair_of(
                (w, r), backbone="mamba2" if w.emits == "recurrent" and place == "tiny" else place
            )
            for place in where
            for w, r in found.pairs()
        ]
    writer_params, reader_params = _params(overrides)
    if name in found.writers.entries:
        subject: Subject = found.writer(name)
    elif name in found.readers.entries:
        subject = found.reader(name)
    else:
        known = {**found.writers.entries, **found.readers.entries}
        hint = did_you_mean(name, known)
        raise PluginNotFound(f"no installed writer or reader is called '{name}' ({hint})")
    if reader is not None and name not in found.writers.entries:
        raise PluginNotFound(
            f"--reader goes with a writer, and no installed writer is called '{name}'"
        )
    pairs = [
        pair_of(subject, reader, params=writer_params, reader_params=reader_params, backbone=place)
        for place in where
    ]
    if overrides:
        pairs[0].memory()  # wrong parameters end here, and break no law
    return pairs


def _params(overrides: Sequence[str]) -> tuple[dict[str, object], dict[str, object]]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from memwrite.errors import ConfigError

    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"an override cannot be read: {error}") from None
    found: list[dict[str, object]] = []
    assert isinstance(given, dict)
    for part in ("writer", "reader"):
        inner = given.pop(part, {})
        params = inner.get("params") if isinstance(inner, dict) and inner else {}
        if not isinstance(params, dict) or (inner and inner.keys() != {"params"}):
            raise ConfigError(f"an override of the {part} is {part}.params.KEY=VALUE")
        found.append(params)
    if given:
        raise ConfigError(
            f"no key '{next(iter(given))}': overrides are writer.params.KEY=VALUE or reader.params.KEY=VALUE"
        )
    return found[0], found[1]


def _bound(pair: Pair, names: Sequence[str]) -> list[BoundLaw]:
    from memwrite_specs.pytest_binding import bind

    return bind(pair, only=names or None)


def _held(bound: BoundLaw, overrides: Sequence[str], seeds: Sequence[int]) -> Result:
    """Return the first result that is not "held", or the last one."""
    found = None
    for seed in seeds:
        result = bound.hold(seed, _command(bound, overrides, seed))
        spent = result.seconds + (found.seconds if found else 0)
        found = replace(result, seconds=spent)
        if found.outcome != "held":
            break
    assert found is not None
    return found


def _command(bound: BoundLaw, overrides: Sequence[str], seed: int) -> str:
    pair = bound.pair
    words = ["memwrite check", pair.writer.name, f"--reader {pair.reader.name}"]
    if pair.writer.name.startswith("reference-"):
        words = ["memwrite check", pair.reader.name]
    elif pair.reader.name.startswith("reference-"):
        words.pop()
    words += [f"--law {bound.law.name}", f"--seed {seed}"]
    if pair.backbone != "tiny":
        words.append(f"--backbone {pair.backbone}")
    return " ".join([*words, *overrides])


def _show(result: Result) -> None:
    tail = "" if result.outcome in ("held", "broken") else f": {result.why}"
    click.echo(f"  {result.outcome:<7}  {result.law}{tail}")
    if result.outcome == "broken":
        click.echo("\n" + result.why + "\n", err=True)


def _summary(results: Sequence[Result]) -> str:
    from collections import Counter

    from memwrite_specs.law import OUTCOMES

    counts = Counter(result.outcome for result in results)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    return f"{len(results)} laws: {words} ({sum(r.seconds for r in results):.0f} s)"
