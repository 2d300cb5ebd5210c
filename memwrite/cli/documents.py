"""`memwrite write --input`: documents out of files or a dataset into a store."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from memwrite.cli._config import Source
from memwrite.cli._options import check_keeps
from memwrite.errors import InputError, MemwriteError

SKIPPED = 3
_MAX_PRINTED = 20


def write_files(
    source: Source,
    overrides: Sequence[str],
    place: str,
    fields: Mapping[str, str],
    out: str,
    batch_size: int,
    days: float | None,
    keep: int,
    engine: str,
    workers: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Write the documents at `place` into the store `out`, and print what became of them.

    Exits with `SKIPPED` where lines were skipped.

    Raises:
        MissingExtra: a package is missing that reads them, or that the engine needs.
        InputError: the documents cannot be read, or the days are beyond the calendar; no store is made then.
    """
    from memwrite.memory import Memory
    from memwrite.stores import Store
    from memwrite.stores.documents import Documents
    from memwrite.stores.ingest import write_documents
    from memwrite.utils.extras import extra

    with extra("stores"):
        from accelerate import PartialState

    first, processes = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
    started = time.monotonic()
    try:
        # Before a store is made for it.
        documents = Documents.of(place, **fields)
        documents.check_shared(processes)
        lifetime = None if days is None else _lifetime(days)
        if any(_same_file(out, found.name) for found in documents.sources):
            raise InputError(f"'{out}' is a file of documents: name another file with --out")
        share = None
        if engine == "ray":
            if processes > 1:
                raise InputError("--engine ray starts processes of its own: leave torchrun out")
            from memwrite.stores.ray_engine import RayWorkers

            share = RayWorkers(source, overrides, out, workers)
        memory = Memory.from_config(source, overrides)
        check_keeps(memory)
        memory.chat = memory.chat and not raw
        with Store(out) as store:
            tally = write_documents(memory, documents, store, batch_size, lifetime, keep, share)
            size = store.size()
    except MemwriteError:
        if first:
            raise
        raise SystemExit(2) from None
    if first:
        seconds = time.monotonic() - started
        if as_json:
            report = {"out": out, **asdict(tally), "seconds": seconds, "store": asdict(size)}
            click.echo(json.dumps(report))
        else:
            rate = tally.written / max(seconds, 1e-9)
            click.echo(
                f"{place} -> {out}: {tally.written} written ({rate:.3g} a second), {tally.already} there already, "
                f"{len(tally.skipped)} lines skipped; {size.memories} memories, {size.nbytes} bytes in all"
            )
        for line in tally.skipped[:_MAX_PRINTED]:
            click.echo(f"{line.file}, line {line.line}: skipped: {line.reason}", err=True)
        if len(tally.skipped) > _MAX_PRINTED:
            click.echo(
                f"and {len(tally.skipped) - _MAX_PRINTED} more (--json prints all)", err=True
            )
    PartialState().wait_for_everyone()  # torchrun ends the others when one ends with an error
    if tally.skipped:
        sys.exit(SKIPPED)


def _same_file(path: str, other: str) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _lifetime(days: float) -> timedelta:
    from memwrite.stores.store import expiry

    try:
        lifetime = timedelta(days=days)
    except (OverflowError, ValueError):  # beyond what a timedelta holds, infinite, or not a number
        raise InputError(
            f"--days {days:g} is not a number of days that the calendar has: give fewer, or leave it out to keep the "
            f"memories for good"
        ) from None
    expiry(datetime.now(UTC), lifetime)
    return lifetime
