"""Where the time of a training step on a pretrained model goes, beside the bare model's forward and backward pass.

    python benchmarks/training.py MODEL [--dtype bfloat16] [--rounds 3] [--json]

A step reads four contexts of 160 tokens, asks five questions of 24 tokens about each, the last four labelled, and trains low-rank
corrections of every layer. The bare model runs as many tokens once forward and back to its embeddings, its weights frozen,
without its vocabulary head. Every way takes its turn in one process; a figure is the median of its CPU seconds over the bare
model's in the same round, so that 1 would be as fast. The ways that are slower are what the library does not do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click
import torch
from timing import in_turn, ratio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from memwrite import Memory
from memwrite.backbones.decoder_layers import linear_layers
from memwrite.config import SelfStudyConfig
from memwrite.modules.low_rank import LowRank, kaiming
from memwrite.state import Tokens
from memwrite.tasks.base import IGNORED, Batch
from memwrite.training import lora
from memwrite.training.distillation import Teacher
from memwrite.training.loss import divergence, training_loss
from memwrite.utils.cpu import tuned_cpu

CONTEXTS, LENGTH, QUERIES, ASKED, LABELLED, RANK = 4, 160, 5, 24, 4, 8


class _Whole(nn.Module):
    """Makes W + BA, as a parametrization does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(kaiming(RANK, weight.shape[1], torch.float32))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + LowRank(self.A, self.B, 1.0).weight()).to(weight.dtype)


def memory_of(model: str, dtype: str, attention: str, **corrected: int) -> Memory:
    """Build a memory that keeps the whole context, with corrections of the model that can be trained."""
    backbone = {
        "path": model,
        "dtype": dtype,
        "attention": attention,
        "lora_rank": RANK,
        **corrected,
    }
    memory = Memory.from_config(
        {"backbone": backbone, "writer": {"name": "full-context"}, "reader": {"name": "key-value"}}
    )
    lora.attach(memory.model, memory.config.backbone, seed=0)
    return memory.train()


def whole_matrices(model: str, dtype: str) -> Memory:
    """Build the same with corrections that are made into whole matrices."""
    memory = memory_of(model, dtype, "eager")
    lora.merge(memory.model)
    for layer in linear_layers(memory.model):
        weight: Any = layer.weight
        parametrize.register_parametrization(layer, "weight", _Whole(weight))
    return memory


def batch_of(memory: Memory) -> Batch:
    """Return random tokens, the last of each query labelled."""
    generator = torch.Generator().manual_seed(0)
    top = memory.backbone.info.vocab_size

    def drawn(*shape: int) -> Tokens:
        ids = torch.randint(3, top, shape, generator=generator)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    queries = drawn(CONTEXTS, QUERIES, ASKED)
    labels = queries.ids.clone()
    labels[..., :-LABELLED] = IGNORED
    return Batch(drawn(CONTEXTS, LENGTH), queries, labels)


def bare(memory: Memory, batch: Batch) -> Callable[[], object]:
    """Return a forward and backward pass of the frozen model over as many tokens."""
    count = batch.context.ids.numel() + batch.queries.ids.numel()
    ids = torch.randint(3, 99, (count // LENGTH, LENGTH))

    def run() -> None:
        with lora.uncorrected(memory.model):
            embeddings = memory.backbone.embed(ids).detach().requires_grad_()
            memory.backbone.forward(embeddings).hidden.float().sum().backward()  # type: ignore[no-untyped-call]

    return run


def step(memory: Memory, batch: Batch) -> Callable[[], object]:
    """Return the library's own step."""

    def run() -> None:
        memory.zero_grad()
        training_loss(memory, batch).loss.backward()  # type: ignore[no-untyped-call]

    return run


def head_everywhere(memory: Memory, batch: Batch) -> Callable[[], object]:
    """Return a step whose vocabulary head runs at every token of the queries."""

    def run() -> None:
        memory.zero_grad()
        logits = memory.read(memory.write(batch.context).state, batch.queries).logits
        found, labels = logits[..., :-1, :].flatten(0, -2), batch.labels[..., 1:].flatten()
        F.cross_entropy(found, labels, ignore_index=IGNORED).backward()  # type: ignore[no-untyped-call]

    return run


def distilled(
    memory: Memory, batch: Batch, apart: bool = False, texts: int = 0
) -> Callable[[], object]:
    """Return a step of distillation: its teacher reads each context once, or, apart, once for every query, and writes texts."""

    def run() -> None:
        memory.zero_grad()
        given = batch
        if apart:
            rows = torch.arange(CONTEXTS).repeat_interleave(QUERIES)
            flat = batch.queries.map(lambda tensor: tensor.flatten(0, 1)[:, None])
            given = Batch(
                batch.context.map(lambda t: t[rows]), flat, batch.labels.flatten(0, 1)[:, None]
            )
        own = Teacher(memory, given.context)
        asked = own.study(batch, SelfStudyConfig(texts, ASKED)) if texts else batch
        taught = own.predict(given if apart else asked)
        found = memory.predict(memory.write(batch.context).state, asked.queries, asked.labels)
        divergence(found, replace(taught, queries=found.queries)).backward()  # type: ignore[no-untyped-call]

    return run


def ways(model: str, dtype: str) -> Mapping[str, Callable[[], object]]:
    """Return what is compared, the bare model first."""
    memory = memory_of(model, dtype, "eager")
    batch, half = batch_of(memory), memory.backbone.info.layers // 2
    runs = {
        "bare model": bare(memory, batch),
        "step": step(memory, batch),
        "step, vocabulary head at every token": head_everywhere(memory, batch),
        "step, corrections as whole matrices": step(whole_matrices(model, dtype), batch),
        "step, attention sdpa": step(memory_of(model, dtype, "sdpa"), batch),
        "step, upper half of the layers corrected": step(
            memory_of(model, dtype, "eager", lora_from=half), batch
        ),
        "distillation": distilled(memory, batch),
        "distillation, and a text that its teacher writes": distilled(memory, batch, texts=1),
        "distillation, a teacher's pass for every query": distilled(memory, batch, apart=True),
    }
    other = "float32" if dtype != "float32" else "bfloat16"
    runs[f"step, {other}"] = step(memory_of(model, other, "eager"), batch)
    return runs


@click.command()
@click.argument("model")
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(model: str, dtype: str, rounds: int, as_json: bool) -> None:
    """Compare ways to train on MODEL, a folder or hub id."""
    torch.set_num_threads(1)
    with tuned_cpu():
        runs = ways(model, dtype)
        seconds = in_turn(runs, rounds)
    first = seconds["bare model"]
    rows: list[dict[str, Any]] = [
        {"way": name, "ratio": ratio(own, first).median, "seconds": min(own)}
        for name, own in seconds.items()
    ]
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "dtype": dtype, "rows": rows}))
        return
    tokens = CONTEXTS * (LENGTH + QUERIES * ASKED)
    for row in rows:
        click.echo(
            f"{row['way']:48}{row['ratio']:6.2f} × bare  {tokens / row['seconds']:7.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
