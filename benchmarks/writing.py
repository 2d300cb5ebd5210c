"""What a key-value memory costs to write, in passes of the model over the same text.

    python benchmarks/writing.py MODEL TEXT --writer h2o --writer compact [--tokens 160] [--rounds 5]

Each writer takes turns with one pass that keeps the whole KV cache; the CPU seconds of one round are compared.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from timing import in_turn, ratio

from memwrite import Memory, Tokens
from memwrite.plugins.registry import registry


@click.command()
@click.argument("model")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--writer", "writers", multiple=True, required=True)
@click.option("--tokens", default=160, help="Of the text, so many from its beginning.")
@click.option("--slots", default=32)
@click.option("--rounds", default=5)
def main(
    model: str, text: Path, writers: tuple[str, ...], tokens: int, slots: int, rounds: int
) -> None:
    """Time writers on MODEL, which read the beginning of TEXT."""
    beside = Memory.from_config({"backbone": {"path": model}})
    backbone = beside.backbone
    # Far more characters than tokens, so that the tokenizer need not see a whole book.
    ids = backbone.tokenizer.encode(text.read_text(encoding="utf-8")[: 20 * tokens])[:tokens]
    context = Tokens.from_rows([ids])
    memories = {}
    for name in writers:
        config = {
            "backbone": {"path": model},
            "writer": {"name": name, "params": {"slots": slots}},
            "reader": {"name": registry().reader_for(name).name},
        }
        memories[name] = Memory.from_config(config, backbone=backbone)

    @torch.no_grad()
    def one_pass() -> None:
        backbone.forward(backbone.embed(context.ids), lengths=context.lengths, use_cache=True)

    runs = {"one pass": one_pass} | {
        name: lambda memory=memory: memory.write(context) for name, memory in memories.items()
    }
    seconds = in_turn(runs, rounds)
    for name, found in seconds.items():
        times = ratio(found, seconds["one pass"])
        click.echo(f"{name:20} {sorted(found)[len(found) // 2]:8.3f} CPU s  {times}")


if __name__ == "__main__":
    main()
