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
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from memwrite import Memory, MemoryState
from memwrite.bulk.writing import write_documents
from memwrite.evaluation.machine import machine
from memwrite.storage import load_state
from memwrite.stores import Store
from memwrite.tokenizer import ALPHABET

MODEL = Path("models") / "gradmem-kv-k1-0"
DOCUMENTS, ROUNDS, READS, AT_ONCE = 1000, 3, 500, 1000


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def bulk(memory: Memory, folder: Path) -> dict[str, float]:
    """Documents a second, at once and one at a time, and the ratio of each round."""
    draw = random.Random(0)
    texts = {
        str(i): "|".join("".join(draw.choices(ALPHABET, k=5)) for _ in range(draw.randint(4, 16)))
        for i in range(DOCUMENTS)
    }
    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in texts.items()))
    one, many = [], []
    for turn in range(ROUNDS):
        with Store(folder / f"many-{turn}.db") as store:
            many.append(seconds(lambda store=store: write_documents(memory, path, store)))
        with Store(folder / f"one-{turn}.db") as store:
            one.append(seconds(lambda store=store: _one_by_one(memory, texts, store)))
    ratios = [a / b for a, b in zip(one, many, strict=True)]
    return {
        "documents_a_second": DOCUMENTS / statistics.median(many),
        "one_at_a_time": DOCUMENTS / statistics.median(one),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def _one_by_one(memory: Memory, texts: dict[str, str], store: Store) -> None:
    for key, text in texts.items():
        store.put(key, memory, memory.write(text).state, source=text)


def keeping(memory: Memory, folder: Path, memories: int) -> dict[str, float]:
    """Milliseconds for one state among so many."""
    shape = memory.writer.spec.shapes["memory"]
    rows = MemoryState(memory.writer.spec, {"memory": torch.randn(AT_ONCE, *shape)})
    with Store(folder / "store.db") as store:
        for start in range(0, memories, AT_ONCE):
            store.put_rows([f"user-{i}" for i in range(start, start + AT_ONCE)], memory, rows)
        draw = random.Random(1)
        keys = [f"user-{draw.randrange(memories)}" for _ in range(READS)]
        read = [seconds(lambda key=key: store.get(key, memory)) for key in keys]
        one = rows.rows(slice(0, 1))
        put = [seconds(lambda key=key: store.put(key, memory, one)) for key in keys]
        size = store.size()
    memory.save(one, folder / "one.safetensors")
    files = [seconds(lambda: load_state(folder / "one.safetensors")) for _ in keys]
    return {
        "memories": size.memories,
        "bytes_each": (folder / "store.db").stat().st_size / size.memories,
        "read_ms": 1e3 * statistics.median(read),
        "read_ms_slowest_of_100": 1e3 * sorted(read)[-READS // 100],
        "put_ms": 1e3 * statistics.median(put),
        "file_ms": 1e3 * statistics.median(files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memories", type=int, default=100_000)
    options = parser.parse_args()
    memory = Memory.from_config(MODEL)
    with tempfile.TemporaryDirectory() as name:
        report = {
            "machine": machine(),
            "bulk": bulk(memory, Path(name)),
            "store": keeping(memory, Path(name), options.memories),
        }
    if options.json:
        print(json.dumps(report))
        return
    done, kept = report["bulk"], report["store"]
    print(report["machine"])
    print(
        f"{DOCUMENTS} documents: {done['documents_a_second']:.0f} a second in batches, "
        f"{done['one_at_a_time']:.0f} one at a time: {done['ratio']:.1f}x ({done['low']:.1f} to {done['high']:.1f})"
    )
    print(
        f"{kept['memories']} memories of {kept['bytes_each']:.0f} bytes: one is read in {kept['read_ms']:.2f} ms (the "
        f"slowest of a hundred {kept['read_ms_slowest_of_100']:.2f}) and put in {kept['put_ms']:.2f}; a state file is read in "
        f"{kept['file_ms']:.2f}"
    )


if __name__ == "__main__":
    main()
