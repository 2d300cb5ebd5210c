"""`memwrite write --input`: a file of documents into a store."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import click

from memwrite.errors import MemwriteError

SKIPPED = 3
_SHOWN = 20


def write_file(
    config: str,
    overrides: Sequence[str],
    path: Path,
    out: str,
    batch_size: int,
    days: float | None,
    as_json: bool,
) -> None:
    """Write the documents, and say what became of them; exits with `SKIPPED` where lines were skipped."""
    from memwrite.memory import Memory
    from memwrite.stores import Store
    from memwrite.stores.documents import count_lines
    from memwrite.stores.ingest import write_documents
    from memwrite.utils.extras import extra

    with extra("stores"):
        from accelerate import PartialState

    first = os.environ.get("RANK", "0") == "0"
    started = time.monotonic()
    try:
        count_lines(path)  # before a store is made for it
        memory = Memory.from_config(config, overrides)
        with Store(out) as store:
            lifetime = None if days is None else timedelta(days=days)
            tally = write_documents(memory, path, store, batch_size, lifetime)
            size = store.size()
    except MemwriteError:
        if first:
            raise
        raise SystemExit(2) from None
    if first:
        seconds = time.monotonic() - started
        if as_json:
            told = {"out": out, **asdict(tally), "seconds": seconds, "store": asdict(size)}
            click.echo(json.dumps(told))
        else:
            rate = tally.written / max(seconds, 1e-9)
            click.echo(
                f"{path} -> {out}: {tally.written} written ({rate:.3g} a second), {tally.already} there already, "
                f"{len(tally.skipped)} lines skipped; {size.memories} memories, {size.nbytes} bytes in all"
            )
        for line in tally.skipped[:_SHOWN]:
            click.echo(f"{path}, line {line.line}: skipped: {line.reason}", err=True)
        if len(tally.skipped) > _SHOWN:
            click.echo(f"and {len(tally.skipped) - _SHOWN} more (--json tells all)", err=True)
    PartialState().wait_for_everyone()  # torchrun ends the others when one ends with an error
    if tally.skipped:
        sys.exit(SKIPPED)
