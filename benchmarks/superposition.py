"""What a memory can hold to which every character of a context is added on its own, as one gradient step adds them.

    python benchmarks/superposition.py
    python benchmarks/superposition.py --run models/gradmem-kv-32-k1to5-0

The ideal: every character that could be the value's at a place has a random direction of its own, the memory is the sum of those that
are there, and the character whose direction has the largest inner product with it is the answer. With `--run`, the directions that a trained writer
adds: its gradients for the value's characters of each context.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from memwrite_gradient.writer import GradientWriter
from torch import Tensor
from torch.nn import functional as F

from memwrite import Memory
from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.base import collate
from memwrite.tasks.key_value import KeyValueConfig, KeyValueTask


def recalled(pairs: int, length: int, numbers: int, trials: int) -> float:
    """Return the share of values, of `length` characters each, of which every character is answered right."""
    right, rng = 0, torch.Generator().manual_seed(0)
    for _ in range(trials):
        codes = torch.randn(pairs * length, len(ALPHABET), numbers, generator=rng)
        values = torch.randint(len(ALPHABET), (pairs * length, 1), generator=rng)
        memory = codes.take_along_dim(values[..., None], 1).sum((0, 1))
        exact = (codes @ memory).argmax(1, keepdim=True) == values
        right += int(exact.view(pairs, length).all(1).sum())
    return right / (pairs * trials)


def directions(memory: Memory, contexts: int, seed: int) -> Tensor:
    """Return the gradient of each value's characters, scaled to length one, as (contexts, characters, numbers)."""
    assert memory.config.task is not None
    writer = memory.writer
    assert isinstance(writer, GradientWriter)
    task = KeyValueTask(KeyValueConfig(**memory.config.task.params), memory.backbone.tokenizer)
    examples, gradients = task.fresh(contexts, seed), []
    for index in range(contexts):
        context = collate([examples[index]])["batch"].context
        slots = writer.init(1)["memory"].detach().requires_grad_()
        embeddings = memory.backbone.embed(context.ids).detach()
        hidden = memory.backbone.forward(torch.cat([slots, embeddings], 1)).hidden
        logits = memory.backbone.logits(hidden[:, slots.shape[1] - 1 : -1], writer.head)
        nll = F.cross_entropy(logits[0], context.ids[0], reduction="none")
        starts = (context.ids[0] == memory.backbone.tokenizer.encode(":")[0]).nonzero() + 1
        places = (starts + torch.arange(task.config.value_length)).flatten()
        rows = [torch.autograd.grad(nll[place], slots, retain_graph=True)[0] for place in places]
        gradients.append(F.normalize(torch.stack(rows).flatten(1), dim=1))
    return torch.stack(gradients)


def spread(codes: Tensor) -> tuple[float, float]:
    """Return the root mean square of the inner products within a context, and the participation ratio of all codes."""
    products = codes @ codes.mT
    others = ~torch.eye(codes.shape[1], dtype=torch.bool)
    power = torch.linalg.svdvals(codes.flatten(0, 1)).square()
    return float(products[:, others].square().mean().sqrt()), float(
        power.sum() ** 2 / power.square().sum()
    )


@click.command()
@click.option("--pairs", default="8,16,32,48,64", help="Numbers of pairs, as in 16,32.")
@click.option("--numbers", default=1024, help="Numbers in the memory.")
@click.option("--length", default=2, help="Characters of a value.")
@click.option("--trials", default=64, help="Contexts drawn for each count of pairs.")
@click.option(
    "--run", type=click.Path(exists=True, path_type=Path), help="Run folder of a gradient writer."
)
@click.option("--contexts", default=16, help="Contexts of the run's task.")
def main(
    pairs: str, numbers: int, length: int, trials: int, run: Path | None, contexts: int
) -> None:
    """Exact match with random directions, or how random those of a run are."""
    if run is not None:
        codes = directions(Memory.from_config(run).eval(), contexts, seed=1)
        product, ratio = spread(codes)
        random, most = spread(F.normalize(torch.randn_like(codes), dim=-1))
        click.echo(f"inner products, root mean square: {product:.4f} (random: {random:.4f})")
        click.echo(f"dimensions, participation ratio: {ratio:.0f} (random: {most:.0f})")
        return
    for count in map(int, pairs.split(",")):
        click.echo(f"{count} pairs: {recalled(count, length, numbers, trials):.1%}")


if __name__ == "__main__":
    main()
