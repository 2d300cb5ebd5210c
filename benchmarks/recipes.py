"""What `learning.py` trains: a task for a memory, as a config and its overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memwrite.backbones.tokenizers import ALPHABET
from memwrite.tasks.mqar import VALUES

#: Overrides of a task of pairs, and values that each of its keys has one of.
PAIRS: dict[str, tuple[tuple[str, ...], int]] = {
    "kv": ((), len(ALPHABET) ** 2),
    "mqar": (
        (
            "task.name=mqar",
            "task.params.pairs=8",
            "task.params.curriculum=[4]",
            "training.steps=3000",
        ),
        len(VALUES),
    ),
    "overwrite": (
        (
            "task.name=overwrite",
            "task.params.pairs=4",
            "task.params.writes=2",
            "training.steps=300",
        ),
        len(ALPHABET) ** 2,
    ),
}
#: What a passage is worth to the text behind it.
TEXT = "text"


def _online(name: str, *params: str, steps: int = 1500) -> tuple[str, ...]:
    given = (f"writer.params.{param}" for param in ("rank=64", *params))
    return "configs/ridge-kv.yaml", f"writer.name={name}", *given, f"training.steps={steps}"


#: A model that answers from one to eight pairs in sight.
SIGHTED = "models/full-context-kv-1to8-0"
#: Writers and readers that learn both pairs and text. They have eight slots, where they have slots; CCM reads two segments.
COMPRESSORS: dict[str, tuple[str, ...]] = {
    "gist": (
        "writer={name: gist, params: {slots: 8, init_std: 0.0884}}",
        "reader.name=key-value",
    ),
    "autocompressor": (
        "writer={name: autocompressor, params: {slots: 8, keep: 1}}",
        "reader.name=prefix",
    ),
    "pool": (
        "writer={name: pool, params: {slots: 8, tokens: 8}}",
        "reader.name=pool",
    ),
    "ccm-concat": (
        "writer={name: ccm-concat, params: {slots: 4, keep: 2, rank: 16, init_std: 0.0884}}",
        "reader.name=key-value",
    ),
    "ccm-merge": (
        "writer={name: ccm-merge, params: {slots: 8, rank: 16, init_std: 0.0884}}",
        "reader.name=key-value",
    ),
    "500x": (
        "writer={name: 500x, params: {slots: 8, rank: 16, init_std: 0.0884}}",
        "reader.name=key-value",
    ),
    "icae": (
        "writer={name: icae, params: {slots: 8, keep: 1, rank: 16, init_std: 0.0884}}",
        "reader.name=prefix",
    ),
    "generative-adapter": (
        "writer={name: generative-adapter, params: {rank: 64}}",
        "reader={name: generative-adapter, params: {alpha: 512}}",
    ),
    "doc-to-lora": (
        "writer={name: doc-to-lora, params: {width: 64, blocks: 2, latents: 16, heads: 4, head_width: 16, chunks: 1}}",
        "reader={name: per-example-lora, params: {alpha: 45.25, rank_scaled: false}}",
    ),
}
#: The others of them leave the model as it is.
TRAIN_THE_MODEL = ("gist", "autocompressor", "pool", "forward", "gradient")


@dataclass(frozen=True)
class Budget:
    """What every memory has for a task.

    Attributes:
        steps: of the optimiser.
        peak: of the learning rate, for memories that are not in `peaks`.
        peaks: of those that have a lower loss with another one in short trainings.
        compared: the peaks of these trainings.
        short: their steps.
        half: tokens of half a context, which are CCM's segments.
    """

    steps: int
    peak: float
    peaks: Mapping[str, float]
    compared: tuple[float, ...]
    short: int
    half: int

    def overrides(self, memory: str) -> list[str]:
        """Return what this says to a memory."""
        peak = self.peaks.get(memory, self.peak)
        half = [f"writer.params.segment={self.half}"] if memory.startswith("ccm") else []
        return [*half, f"training.steps={self.steps}", f"training.learning_rate={peak}"]


#: 32 contexts a step.
KV = Budget(1000, 0.003, {"gist": 0.001}, (0.001, 0.003), 300, half=29)
#: Eight passages a step.
PASSAGES = Budget(100, 0.002, {}, (0.0005, 0.002), 20, half=33)
BUDGETS = {**dict.fromkeys(PAIRS, KV), TEXT: PASSAGES}


def _on_pairs(memory: str, *parts: str) -> tuple[str, ...]:
    """Return the training of a memory on contexts of one to eight pairs, in which it begins with one."""
    if memory in TRAIN_THE_MODEL:
        given = "configs/gist-kv.yaml", f"training.start={SIGHTED}"
    else:
        given = "configs/ccm-kv.yaml", f"backbone.path={SIGHTED}"
    return *given, *parts, "task.params.fewest=1", *KV.overrides(memory)


def _on_text(memory: str, *parts: str) -> tuple[str, ...]:
    """Return the training that `forward-smollm2.yaml` describes, of short passages."""
    rank = 16 if memory in TRAIN_THE_MODEL else 0
    sizes = (f"backbone.lora_rank={rank}", "task.params.context=64", "task.params.length=32")
    budget = PASSAGES.overrides(memory)
    return "configs/forward-smollm2.yaml", *parts, *sizes, "training.every=50", *budget


#: Memories that learn tasks of pairs.
ON_PAIRS: dict[str, tuple[str, ...]] = {
    "ridge": ("configs/ridge-kv.yaml",),
    "titans": ("configs/titans-kv.yaml",),
    "ttt-linear": _online("ttt-linear", "chunk=8"),
    "mesa": _online("mesa", "solver=cg", "iterations=10"),
    "lact": (*_online("lact", "learning_rate=30", steps=3000), "reader.params.alpha=2048"),
    "associative": ("configs/associative-kv.yaml",),
    "delta": _online("delta", "beta_bias=0.0", "forgetting=none", steps=3000),
    "titans-mlp": _online("titans-mlp", "chunk=1", "max_step=4"),
    "ttt-mlp": _online("ttt-mlp", "chunk=1"),
    "forward": _on_pairs(
        "forward",
        "writer={name: forward, params: {slots: 8, projection: read-write, write_head: true, reconstruction_weight: 0.3, init_std: 0.0884}}",
        "reader.name=prefix",
    ),
    "gradient": (
        "configs/gradmem-kv.yaml",
        "task.params.fewest=1",
        "training.batch_size=32",
        f"training.steps={KV.steps}",
    ),
    **{memory: _on_pairs(memory, *parts) for memory, parts in COMPRESSORS.items()},
}
#: Memories that learn text.
ON_TEXT: dict[str, tuple[str, ...]] = {
    **{memory: _on_text(memory, *parts) for memory, parts in COMPRESSORS.items()},
    "forward": _on_text("forward"),
    "gradient": _on_text(
        "gradient",
        "writer={name: gradient, params: {slots: 8, lr: 0.1, learned_lr: each, clip_norm: 1.0, init_std: 0.0884, recompute: true}}",
    ),
}
RECIPES = {**dict.fromkeys(PAIRS, ON_PAIRS), TEXT: ON_TEXT}
