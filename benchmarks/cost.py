"""What many memories cost: processor hours, bytes and euros for a million and a billion documents, beside the KV cache.

    python benchmarks/cost.py [--model smollm2-135m] [--writers compact ridge ...] [--documents 3] [--tokens 256]
        [--core-hour 0.04] [--gpu-hour 2.5] [--gpu-rate WRITER=DOCUMENTS_PER_SECOND ...] [--gigabyte-month 0.02]

A few documents are written by each writer and put into a store, in turn, on one thread. What is measured is the CPU seconds
and the bytes; everything else is those numbers times a number of documents, times a price. Prices are assumptions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from timing import in_turn

from memwrite import Memory
from memwrite.demo.article import ARTICLE
from memwrite.evaluation.machine import machine
from memwrite.plugins.registry import registry
from memwrite.stores import Store
from memwrite.utils.cpu import tuned_cpu

#: The writer that keeps the KV cache of the whole text.
FULL = "full-context"
SCALES = {"10⁶": 10**6, "10⁹": 10**9}


@dataclass(frozen=True)
class Prices:
    """Euros, which are assumed: round figures, to be replaced by those of one's own.

    Attributes:
        core_hour: of one processor core for an hour.
        gpu_hour: of one GPU for an hour.
        gigabyte_month: of 10⁹ bytes kept for a month.
    """

    core_hour: float = 0.04
    gpu_hour: float = 2.5
    gigabyte_month: float = 0.02


@dataclass(frozen=True)
class Cost:
    """What one document costs with one writer.

    Attributes:
        writer: its name.
        cpu_seconds: of writing it and of putting the state into a store, where it goes into one; measured.
        nbytes: of the state as a store has it or, of the full cache, of its keys and values in 16 bits.
        gpu_rate: documents that a GPU writes in a second, as somebody measured; None where nobody has.
    """

    writer: str
    cpu_seconds: float
    nbytes: float
    gpu_rate: float | None = None


def documents(memory: Memory, number: int, tokens: int) -> list[str]:
    """Return texts of about so many tokens, out of an article that is repeated; each begins at another place."""
    ids = memory.backbone.encode(ARTICLE.read_text())
    ids = ids * (1 + (number + tokens) // len(ids) + tokens * number // len(ids))
    starts = range(0, number * tokens, tokens)
    return [memory.backbone.tokenizer.decode(ids[start : start + tokens]) for start in starts]


@torch.no_grad()
def measured(
    model: str, writers: Sequence[str], number: int, tokens: int, rounds: int
) -> tuple[list[Cost], float]:
    """Return the costs of each writer, the full cache last, and the mean number of tokens of a document."""
    runs: dict[str, Callable[[], None]] = {}
    sizes: dict[str, float] = {}
    lengths = 0.0
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.db") as store:
        for name in [*writers, FULL]:
            reader = registry().reader_for(name).name
            described = {"backbone": {"path": model}, "writer": {"name": name}}
            memory = Memory.from_config({**described, "reader": {"name": reader}})
            texts = documents(memory, number, tokens)
            lengths = float(memory.encode(texts, raw=True).lengths.float().mean())

            def run(name: str = name, memory: Memory = memory, texts: list[str] = texts) -> None:
                state = memory.write(memory.encode(texts, raw=True)).state
                if name == FULL:
                    numbers = state["keys"].numel() + state["values"].numel()
                    sizes[name] = 2 * numbers / len(texts)
                    return
                keys = [f"{name}-{turn}" for turn in range(len(texts))]
                store.put_rows(keys, memory, state, texts=texts)
                sizes[name] = sum(entry.nbytes for entry in store.list(f"{name}-")) / len(texts)

            runs[name] = run
        with tuned_cpu():
            seconds = in_turn(runs, rounds)
    return [Cost(n, median(s) / number, sizes[n]) for n, s in seconds.items()], lengths


def sheet(costs: Sequence[Cost], prices: Prices) -> str:
    """Return the two tables, of writing and of keeping, as Markdown."""
    head = ["writer", "documents per CPU second"]
    head += [f"{what}, {scale}" for scale in SCALES for what in ("CPU hours", "€")]
    rows = []
    for cost in costs:
        hours = [cost.cpu_seconds * n / 3600 for n in SCALES.values()]
        money = [short(figure) for h in hours for figure in (h, h * prices.core_hour)]
        rows.append([_name(cost), short(1 / cost.cpu_seconds), *money])
    writing = _table(head, rows)
    head = ["kept", "bytes each"]
    head += [f"{what}, {scale}" for scale in SCALES for what in ("bytes", "€ a month")]
    rows = []
    for cost in costs:
        totals = [cost.nbytes * n for n in SCALES.values()]
        figures = [
            text for t in totals for text in (size(t), short(t / 1e9 * prices.gigabyte_month))
        ]
        rows.append([_name(cost), size(cost.nbytes), *figures])
    tables = [writing, _table(head, rows)]
    if on_gpu := [cost for cost in costs if cost.gpu_rate]:
        head = ["writer", "documents per GPU second (yours)"]
        head += [f"{what}, {scale}" for scale in SCALES for what in ("GPU hours", "€")]
        rows = []
        for cost in on_gpu:
            assert cost.gpu_rate
            hours = [n / cost.gpu_rate / 3600 for n in SCALES.values()]
            money = [short(figure) for h in hours for figure in (h, h * prices.gpu_hour)]
            rows.append([_name(cost), short(cost.gpu_rate), *money])
        tables.append(_table(head, rows))
    return "\n\n".join(tables)


def short(number: float) -> str:
    """Return a number in two or three digits, with commas."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.2g}"


def size(nbytes: float) -> str:
    """Return a number of bytes in decimal units."""
    units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while nbytes >= 1000 and len(units) > 1:
        nbytes, units = nbytes / 1000, units[1:]
    return f"{nbytes:.3g} {units[0]}"


def _name(cost: Cost) -> str:
    return "full KV cache, 16 bits" if cost.writer == FULL else f"`{cost.writer}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rates(given: Sequence[str]) -> Mapping[str, float]:
    """Return what the options `--gpu-rate WRITER=RATE` say."""
    pairs = (text.partition("=") for text in given)
    return {name: float(rate) for name, _, rate in pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables with what they rest on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--writers", nargs="+", default=["compact", "ridge"])
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-rate", nargs="*", default=[], metavar="WRITER=RATE")
    for name in ("core_hour", "gpu_hour", "gigabyte_month"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=getattr(Prices, name))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prices = Prices(options.core_hour, options.gpu_hour, options.gigabyte_month)
    costs, lengths = measured(
        options.model, options.writers, options.documents, options.tokens, options.rounds
    )
    known = rates(options.gpu_rate)
    costs = [Cost(c.writer, c.cpu_seconds, c.nbytes, known.get(c.writer)) for c in costs]
    print(sheet(costs, prices))
    print(
        f"\nMeasured with {options.model} on {machine()}: {options.documents} documents of {lengths:.0f} tokens, median of "
        f"{options.rounds} rounds. Assumed: {prices.core_hour:g} € for a core hour, {prices.gpu_hour:g} € for a GPU hour, "
        f"{prices.gigabyte_month:g} € for a gigabyte and month."
    )


if __name__ == "__main__":
    main()
