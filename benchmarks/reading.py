"""What it saves to ask a memory rather than to read the context again: time to the first token, and bytes.

    python benchmarks/reading.py [--json] [--plot FILE]

Asking a state whose keys and values are at hand (`PrefillCache`), beside transformers' own `generate` on context and
question, for contexts of 256 to 4,096 tokens: both in turn, in one process; ratios are medians of the pairs' own, with
their quartiles. Then the same for models that were trained to remember key-value pairs, by what they answer rightly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
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
from memwrite.prefill import PrefillCache

LENGTHS = (256, 512, 1024, 2048, 4096)
QUESTION, PAIRS, CONTEXTS = 8, 15, 128
MODELS = Path("models")
#: Model and pairs that it is asked for.
TRAINED = (
    ("gradmem-kv-k2-0", 4),
    ("gradmem-kv-k2-0", 8),
    ("gradmem-kv-16-k2-0", 16),
    ("gradmem-kv-32-k2-0", 32),
    ("full-context-kv-0", 2),
    ("full-context-kv-0", 4),
    ("full-context-kv-0", 8),
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
    """transformers' own way to the token behind `ids` (1, T)."""
    mask, end = torch.ones_like(ids), memory.backbone.info.end
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": end}
    return partial(memory.model.generate, ids, attention_mask=mask, **options)


def ways(memory: Memory, length: int) -> dict[str, Callable[[], object]]:
    """To the first token behind a context of so many tokens: its memory "asked", and all of it "reread"."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, length + QUESTION), generator=draw)
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
        found = in_turn(ways(memory, length), PAIRS, time.perf_counter)
        less = ratio(found["reread"], found["asked"])
        numbers = 2 * info.layers * info.kv_heads * info.head_dim
        rows.append(
            {
                "tokens": length,
                "reread_ms": 1e3 * median(found["reread"]),
                "ask_ms": 1e3 * median(found["asked"]),
                "ratio": less.median,
                "low": less.low,
                "high": less.high,
                "cache_bytes": 4 * numbers * (length + QUESTION),
                "state_bytes": memory.writer.init(1).nbytes,
                "prefilled_bytes": cache.nbytes // len(cache),
            }
        )
    return rows


@torch.no_grad()
def by_accuracy() -> list[dict[str, Any]]:
    """Of trained models: what they answer rightly, and what a question costs them, whole context in sight or not."""
    rows = []
    for name, count in TRAINED:
        full = name.startswith("full")
        overrides = [f"task.params.pairs={count}"] + ([] if full else ["writer.params.steps=5"])
        result: Any = evaluate_run(MODELS / name, overrides, seed=1, examples=CONTEXTS).result
        memory = Memory.from_config(MODELS / name, overrides)
        memory.prefills = PrefillCache()
        context = Tokens.from_rows([[10 + i % 50 for i in range(6 * count)]])
        state, question = memory.write(context).state, Tokens.from_rows([[11, 12, 13]])
        whole = torch.cat([context.ids, question.ids], 1)
        asking = partial(memory.generate, state, question, max_new_tokens=1)
        run = rereading(memory, whole) if full else asking
        asked = in_turn({name: run}, PAIRS, time.perf_counter)[name]
        rows.append(
            {
                "model": name,
                "pairs": count,
                "exact_match": result.memory.exact_match,
                "bytes": result.state_bytes,
                "ask_ms": 1e3 * median(asked),
            }
        )
    return rows


def plot(report: dict[str, Any], path: Path) -> None:
    """Time and bytes over the context's length, and over what is answered rightly."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    time_axes, byte_axes, right_axes = figure.subplots(1, 3)
    lengths = [row["tokens"] for row in report["by_length"]]
    for axes, names, label in (
        (time_axes, {"reread_ms": "context read again", "ask_ms": "memory asked"}, "ms to the first token"),
        (byte_axes, {"cache_bytes": "KV cache of the context", "prefilled_bytes": "memory at hand", "state_bytes": "state"},
         "bytes"),
    ):  # fmt: skip
        for name, legend in names.items():
            axes.plot(lengths, [row[name] for row in report["by_length"]], "o-", label=legend)
        axes.set(yscale="log", xlabel="tokens of context", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.legend(frameon=False)
    for kind, legend in (("gradmem", "gradient writer, five steps"), ("full", "context in sight")):
        rows = [row for row in report["by_accuracy"] if row["model"].startswith(kind)]
        right_axes.plot(
            [row["exact_match"] for row in rows], [row["bytes"] for row in rows], "o", label=legend
        )
        for turn, row in enumerate(rows):
            offset = (-8, 9 + 11 * turn if kind == "gradmem" else -3)
            right_axes.annotate(
                f"{row['pairs']} pairs, {row['ask_ms']:.1f} ms",
                (row["exact_match"], row["bytes"]),
                offset,
                textcoords="offset points",
                fontsize=7,
                ha="right",
            )
    right_axes.set(xlabel="exact match", ylabel="bytes kept", yscale="log", xlim=(0.5, 1.02))
    right_axes.legend(frameon=False, loc="center left")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    report = {"machine": machine(), "by_length": by_length(), "by_accuracy": by_accuracy()}
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
