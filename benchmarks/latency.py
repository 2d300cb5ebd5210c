"""What it takes to write a context and to ask a memory of it, against the context's length, beside the whole KV cache.

    python benchmarks/latency.py [--device cuda] [--contexts 1024,4096,16384] [--writer compact] [--json]

The model has the shape of Qwen3-4B and random weights, in bfloat16, which changes no time. Writing is one pass over the context
or more; asking is one token behind the state, up to the logits of the next. Medians over rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import torch
from timing import in_turn

from memwrite import Memory
from memwrite.plugins.registry import registry
from memwrite.state import Tokens

QWEN3_4B = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    **QWEN3_4B, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
}  # fmt: skip


def clock_of(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device."""

    def clock() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def memory_of(name: str, slots: int, backbone: Any) -> Memory:
    """Build a memory around a backbone, with so many slots where its writer counts them."""
    plugin = registry().writer(name)
    params = {} if plugin.slots is None else {plugin.slots: slots}
    reader = registry().reader_for(name).name
    config = {"writer": {"name": name, "params": params}, "reader": {"name": reader}}
    return Memory.from_config({**config, "backbone": backbone.described}, backbone=backbone).eval()


def measure(memory: Memory, context: int, rounds: int, device: str) -> dict[str, Any]:
    """Return the seconds to write a context of so many tokens and to ask, and the bytes of the state."""
    ids = torch.randint(3, 250, (1, context), generator=torch.Generator().manual_seed(0))
    tokens, query = Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), Tokens.from_rows([[5]])
    state = memory.write(tokens).state
    works = {"write": lambda: memory.write(tokens), "read": lambda: memory.read(state, query)}
    with torch.no_grad():
        seconds = in_turn(works, rounds, clock_of(device))
    return {
        "context": context,
        "writer": memory.config.writer.name,
        "write_seconds": median(seconds["write"]),
        "read_seconds": median(seconds["read"]),
        "bytes": state.nbytes,
    }


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--contexts", default="1024,4096,16384,32768", show_default=True)
@click.option("--writer", "writers", multiple=True, help="compact and h2o by default.")
@click.option("--slots", default=128, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--small", is_flag=True, help="A tiny model and a short context.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    device: str,
    dtype: str,
    contexts: str,
    writers: tuple[str, ...],
    slots: int,
    rounds: int,
    small: bool,
    as_json: bool,
) -> None:
    """Time writes and reads."""
    shape, lengths = QWEN3_4B, [int(word) for word in contexts.split(",")]
    if small:
        shape, lengths, slots, rounds = TINY, [64], 8, 1
    backbone = Memory.from_config(
        {"backbone": {"type": "qwen3", "params": shape, "dtype": dtype, "device": device}}
    ).backbone
    names = ["full-context", *(writers or ("compact", "h2o"))]
    rows = [
        measure(memory_of(name, slots, backbone), length, rounds, device)
        for length in lengths
        for name in names
    ]
    if as_json:
        click.echo(
            json.dumps({"torch": torch.__version__, "dtype": dtype, "slots": slots, "rows": rows})
        )
        return
    for row in rows:
        click.echo(
            f"{row['context']:>6} tokens  {row['writer']:14} write {row['write_seconds']:.4f} s  "
            f"read {row['read_seconds']:.4f} s  {row['bytes']:>14,} bytes"
        )


if __name__ == "__main__":
    main()
