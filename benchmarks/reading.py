"""What it saves to ask a memory rather than to read the context again: time to the first token, and bytes.

    python benchmarks/reading.py [--json] [--plot FILE]

Asking a state whose keys and values are at hand (`PrefillCache`), beside transformers' own `generate` on context and
question, for contexts of 256 to 4,096 tokens: both in turn, in one process; ratios are medians of the pairs' own, with
their quartiles. Then the same for models that were trained on key-value pairs and answer nearly all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from timing import in_turn, ratio
from torch import Tensor

from memwrite import Memory, Tokens
from memwrite.evaluation.machine import machine
from memwrite.evaluation.run import evaluate_run
from memwrite.inference.prefill_cache import PrefillCache

LENGTHS = (256, 512, 1024, 2048, 4096)
MS = "ms to the first token"
QUESTION, PAIRS, CONTEXTS = 8, 15, 128
MODELS = Path("models")
#: Of models that answer nearly all of them: the name, and pairs that it is asked for.
TRAINED = (
    ("gradmem-kv-32-k1to5-0", 8),
    ("gradmem-kv-32-k1to5-0", 16),
    ("gradmem-kv-32-k1to5-0", 32),
    ("full-context-kv-h32-0", 8),
)
CONFIG = {
    "backbone": {
        "type": "llama",
        "params": {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "max_position_embeddings": 8192,
        },
    },
    "writer": {"name": "gradient", "params": {"slots": 16}},
    "reader": {"name": "prefix"},
}


def rereading(memory: Memory, ids: Tensor) -> Callable[[], object]:
    """Return a call of transformers' own `generate` that computes the token behind `ids` (1, T)."""
    mask, end = torch.ones_like(ids), memory.backbone.info.eos_id
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": end}
    return partial(memory.model.generate, ids, attention_mask=mask, **options)


def ways(memory: Memory, length: int) -> dict[str, Callable[[], object]]:
    """Return the two ways to the first token behind a context of `length` tokens: the memory "asked", the text "reread"."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, length + QUESTION), generator=rng)
    state = memory.write(Tokens.from_rows(ids[:, :length].tolist())).state
    question = Tokens.from_rows(ids[:, length:].tolist())
    return {
        "reread": rereading(memory, ids),
        "asked": partial(memory.generate, state, question, max_new_tokens=1),
    }


@torch.no_grad()
def by_length() -> list[dict[str, float]]:
    memory = Memory.from_config(CONFIG)
    cache = memory.prefills = PrefillCache()
    info, rows = memory.backbone.info, []
    for length in LENGTHS:
        seconds = in_turn(ways(memory, length), PAIRS, time.perf_counter)
        speedup = ratio(seconds["reread"], seconds["asked"])
        numbers = 2 * info.layers * info.kv_heads * info.head_dim
        rows.append(
            {
                "tokens": length,
                "reread_ms": 1e3 * median(seconds["reread"]),
                "ask_ms": 1e3 * median(seconds["asked"]),
                "ratio": speedup.median,
                "low": speedup.low,
                "high": speedup.high,
                "cache_bytes": 4 * numbers * (length + QUESTION),
                "state_bytes": memory.writer.init(1).nbytes,
                "prefilled_bytes": cache.nbytes // len(cache),
            }
        )
    return rows


@torch.no_grad()
def by_accuracy() -> list[dict[str, Any]]:
    """Return what trained models answer right, the bytes that they keep of a context, and the time of a question."""
    rows = []
    for name, count in TRAINED:
        steps = [] if name.startswith("full") else ["writer.params.steps=5"]
        overrides = [f"task.params.pairs={count}", *steps]
        result: Any = evaluate_run(MODELS / name, overrides, seed=1, examples=CONTEXTS).result
        memory = Memory.from_config(MODELS / name, overrides)
        memory.prefills = PrefillCache()
        context = Tokens.from_rows([[10 + i % 50 for i in range(7 * count + 1)]])
        state, question = memory.write(context).state, Tokens.from_rows([[11, 12, 13]])
        asking = partial(memory.generate, state, question, max_new_tokens=1)
        seconds = in_turn({name: asking}, PAIRS, time.perf_counter)[name]
        rows.append(
            {
                "model": name,
                "pairs": count,
                "exact_match": result.memory.exact_match,
                "bytes": result.state_bytes,
                "ask_ms": 1e3 * median(seconds),
            }
        )
    return rows


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot time and bytes against the length of the context, and against the pairs that trained models answer."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    above, below = figure.subplots(2, 2)
    bytes_of = {
        "cache_bytes": "KV cache of the context",
        "prefilled_bytes": "memory at hand",
        "state_bytes": "state",
    }
    for axes, names, label in (
        (above[0], {"reread_ms": "context read again", "ask_ms": "memory asked"}, MS),
        (above[1], bytes_of, "bytes"),
    ):
        rows = report["by_length"]
        for name, legend in names.items():
            axes.plot([r["tokens"] for r in rows], [r[name] for r in rows], "o-", label=legend)
        _finish(axes, "tokens of context", label, LENGTHS)
    for axes, name, label in ((below[0], "ask_ms", MS), (below[1], "bytes", "bytes kept")):
        for kind, legend in (
            ("gradmem", "gradient writer, five steps"),
            ("full", "context in sight"),
        ):
            rows = [r for r in report["by_accuracy"] if r["model"].startswith(kind)]
            axes.plot([r["pairs"] for r in rows], [r[name] for r in rows], "o-", label=legend)
            for row in rows:
                where = row["pairs"], row[name]
                share = f"{row['exact_match']:.1%}"
                axes.annotate(share, where, (0, 5), textcoords="offset points", fontsize=7)
        _finish(axes, "pairs (and how many are answered)", label, (8, 16, 32))
    below[0].set(yscale="linear", ylim=(0, None))
    figure.savefig(path, dpi=120)


def _finish(axes: Any, label: str, other: str, ticks: Sequence[int]) -> None:
    axes.set(yscale="log", xlabel=label, ylabel=other)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "machine": machine(),
        "by_length": by_length(),
        "by_accuracy": by_accuracy(),
    }
    if options.plot:
        plot(report, options.plot)
    if options.json:
        print(json.dumps(report))
        return
    print(report["machine"])
    for row in report["by_length"]:
        print(
            f"{row['tokens']:5} tokens: read again {row['reread_ms']:7.1f} ms, asked {row['ask_ms']:5.1f} ms: "
            f"{row['ratio']:5.1f}x less ({row['low']:.1f} to {row['high']:.1f}); "
            f"KV cache {row['cache_bytes']} bytes, state {row['state_bytes']}, at hand {row['prefilled_bytes']}"
        )
    for row in report["by_accuracy"]:
        print(
            f"{row['model']:20} {row['pairs']:3} pairs: {row['exact_match']:6.1%} right, {row['bytes']:6} bytes, "
            f"{row['ask_ms']:.1f} ms"
        )


if __name__ == "__main__":
    main()
