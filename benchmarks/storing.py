"""Writing documents and keeping their memories, many at once beside one at a time.

    python benchmarks/storing.py [--json] [--memories 100000]

Bulk: 1,000 short documents by the gradient writer into a store in batches, beside the same writer and store with one
document at a time, in turn in one process. Store: one state among many, read by its key and put, beside a state file of
its own for each.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing import in_turn, ratio

from memwrite import Memory, MemoryState
from memwrite.backbones.tokenizers import ALPHABET
from memwrite.checkpoints.state_file import load_state
from memwrite.evaluation.machine import machine
from memwrite.stores import Store
from memwrite.stores.documents import Documents
from memwrite.stores.ingest import write_documents

MODEL = Path("models") / "gradmem-kv-k1-0"
DOCUMENTS, ROUNDS, READS, AT_ONCE = 1000, 3, 500, 1000


def bulk(memory: Memory, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds for all documents, in "batches" and "one at a time", in every round."""
    rng = random.Random(0)
    texts = {
        str(i): "|".join("".join(rng.choices(ALPHABET, k=5)) for _ in range(rng.randint(4, 16)))
        for i in range(DOCUMENTS)
    }
    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in texts.items()))
    fresh = (folder / f"{turn}.db" for turn in count())

    def batches() -> None:
        with Store(next(fresh)) as store:
            write_documents(memory, Documents.of(path), store)

    def one_at_a_time() -> None:
        with Store(next(fresh)) as store:
            for key, text in texts.items():
                store.put(key, memory, memory.write(text).state, text=text)

    runs = {"batches": batches, "one at a time": one_at_a_time}
    return in_turn(runs, rounds, time.perf_counter)


def keeping(memory: Memory, folder: Path, memories: int) -> dict[str, Any]:
    """Return the bytes of each entry, and the seconds to "read" and "put" one entry and to read a state "file"."""
    shape = memory.writer.spec.shapes["memory"]
    rows = MemoryState(memory.writer.spec, {"memory": torch.randn(AT_ONCE, *shape)})
    one, path = rows.rows(slice(0, 1)), folder / "one.safetensors"
    memory.save(one, path)
    with Store(folder / "store.db") as store:
        for start in range(0, memories, AT_ONCE):
            store.put_rows([f"user-{i}" for i in range(start, start + AT_ONCE)], memory, rows)
        rng = random.Random(1)
        key = partial(rng.randrange, memories)
        runs = {
            "read": lambda: store.get(f"user-{key()}", memory),
            "put": lambda: store.put(f"user-{key()}", memory, one),
            "file": lambda: load_state(path),
        }
        seconds = in_turn(runs, READS, time.perf_counter)
        each = (folder / "store.db").stat().st_size / store.size().memories
    return {"bytes_each": each, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memories", type=int, default=100_000)
    options = parser.parse_args()
    memory = Memory.from_config(MODEL)
    with tempfile.TemporaryDirectory() as name:
        written = bulk(memory, Path(name), ROUNDS)
        kept = keeping(memory, Path(name), options.memories)
    report = {
        "machine": machine(),
        "documents_a_second": DOCUMENTS / median(written["batches"]),
        "one_at_a_time": DOCUMENTS / median(written["one at a time"]),
        "ratio": asdict(ratio(written["one at a time"], written["batches"])),
        "memories": options.memories,
        "bytes_each": kept["bytes_each"],
        "read_ms": 1e3 * median(kept["read"]),
        "read_ms_slowest_of_100": 1e3 * sorted(kept["read"])[-READS // 100],
        "put_ms": 1e3 * median(kept["put"]),
        "file_ms": 1e3 * median(kept["file"]),
    }
    if options.json:
        print(json.dumps(report))
        return
    print(report["machine"])
    print(
        f"{DOCUMENTS} documents: {report['documents_a_second']:.0f} a second in batches, {report['one_at_a_time']:.0f} one at "
        f"a time: {ratio(written['one at a time'], written['batches'])}"
    )
    print(
        f"{options.memories} memories of {kept['bytes_each']:.0f} bytes: one is read in {report['read_ms']:.2f} ms (the "
        f"slowest of a hundred {report['read_ms_slowest_of_100']:.2f}) and put in {report['put_ms']:.2f}; a state file is "
        f"read in {report['file_ms']:.2f}"
    )


if __name__ == "__main__":
    main()
