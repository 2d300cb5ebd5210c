"""Make a run folder that is small: the LoRAs of its model, and of the run folders behind it, become one of lower rank.

    python benchmarks/merge_loras.py runs/babi-smollm2-forward --rank 12 --out models/babi-smollm2

Of each layer's sum the largest singular values are kept; the share of its squares that they hold is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import Tensor

from memwrite import Memory
from memwrite.backbones.adapters import Adapter, read
from memwrite.backbones.loading import base_of
from memwrite.checkpoints.run_folder import save_run
from memwrite.config import BackboneConfig
from memwrite.modules.low_rank import LowRank


def cut(parts: Sequence[LowRank], rank: int) -> tuple[LowRank, Tensor]:
    """Return the nearest matrix of `rank` to the sum of the parts, in float16, and all singular values of the sum."""
    up = torch.cat([part.B.double() * part.scale for part in parts], 1)
    down = torch.cat([part.A.double() for part in parts])
    (left, small), (right, other) = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(small @ other.T)
    root = values[:rank].sqrt()
    upper, lower = left @ (u[:, :rank] * root), (v[:rank] * root[:, None]) @ right.T
    return LowRank(lower.half(), upper.half(), 1.0), values


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--rank", type=click.IntRange(min=1), required=True, help="Rank of the new LoRA.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to be made.")
def main(run: str, rank: int, out: Path) -> None:
    base, folders = base_of(BackboneConfig(path=run))
    loras = [read(folder) for folder in folders]
    merged, kept, whole = {}, 0.0, 0.0
    for name in sorted({name for lora in loras for name in lora.corrections}):
        parts = [lora.corrections[name] for lora in loras if name in lora.corrections]
        merged[name], values = cut(parts, rank)
        kept, whole = kept + float((values[:rank] ** 2).sum()), whole + float((values**2).sum())
    adapter = Adapter(merged, float(rank), str(base.path), loras[0].transposed)
    before = Memory.from_config(run)
    named = replace(before.config.backbone, path=base.path, adapter=None)
    config = replace(before.config, backbone=replace(named, lora_rank=rank, lora_alpha=float(rank)))
    memory = Memory.from_config(config)
    adapter.apply(memory.model)
    for part in ("writer", "reader"):
        getattr(memory, part).load_state_dict(getattr(before, part).state_dict())
    save_run(memory.components, out, adapter)
    click.echo(f"{out}: {len(merged)} layers of rank {rank}, {kept / whole:.1%} of the squares")


if __name__ == "__main__":
    main()
