"""Configurations: YAML and overrides become validated dataclasses. An error says what is wrong, where, and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from memwrite.errors import ConfigError, did_you_mean
from memwrite.utils.structured import merge, parse_overrides, read_yaml

T = TypeVar("T")

OBJECTIVES = ("labels", "distillation")
SCHEDULES = ("cosine", "stable")
NGRAMS = range(1, 9)
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class BackboneConfig:
    """Which language model, and how to hold it.

    Attributes:
        path: a folder (a run folder will do) or a hub id; or
        adapter: with `path`: a folder with a LoRA in peft's format, which is added to the model's weights.
        type: a transformers model type ("llama", "gpt2") to build from scratch with `params`.
        params: the fields of that type's configuration.
        tokenizer: with `type`: "bytes", "characters" (those of key-value retrieval), a folder with a tokenizer, or
            "bpe" or "words" to learn one in `memwrite train` from the training text.
        ngram: with `type`, from 1 to 8: if not 1, every token's embedding is with a fixed code of it and the `ngram` - 1
            tokens before it; a model keeps that.
        dtype: "float32", "bfloat16", "float16" or "float64".
        device: "cpu", "cuda", "cuda:1", ...
        attention: "sdpa" (fast) or "eager" (needed by second-order gradients).
        trainable: whether the model's own weights are trained along.
        lora_rank: if not 0, low-rank corrections of this rank are trained in place of the weights, on every linear
            layer of the blocks; a finished run holds them as a LoRA of peft's, or the sum where the weights themselves are
            in no folder.
        lora_alpha: the corrections count α/rank-fold, above 0.
        lora_from: the first layer that is corrected, from 0. Where nothing below it learns, no gradient goes there either, and a
            step is so much faster.
    """

    path: str | None = None
    adapter: str | None = None
    type: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "bytes"
    ngram: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "sdpa"
    trainable: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_from: int = 0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.type is None):
            raise ConfigError("set either backbone.path or backbone.type, not both")
        if self.adapter is not None and self.path is None:
            raise ConfigError("backbone.adapter corrects a model that is there: set backbone.path")
        for key, options in (("dtype", DTYPES), ("attention", ("sdpa", "eager"))):
            if (value := getattr(self, key)) not in options:
                raise ConfigError(f"backbone.{key} = '{value}': {did_you_mean(value, options)}")
        if self.ngram not in NGRAMS:
            raise ConfigError(f"backbone.ngram must be from 1 to {NGRAMS[-1]}, got {self.ngram}")
        if self.lora_rank < 0 or self.lora_from < 0 or self.lora_alpha <= 0:
            raise ConfigError(
                f"backbone.lora_rank and lora_from must be at least 0 and backbone.lora_alpha positive, got "
                f"{self.lora_rank}, {self.lora_from} and {self.lora_alpha}"
            )
        if self.lora_rank and self.trainable:
            raise ConfigError(
                "backbone.lora_rank trains corrections in place of the weights, backbone.trainable=true the "
                "weights themselves: set one of them"
            )


@dataclass(frozen=True)
class PartConfig:
    """A writer, reader or task by its name in the registry, and its own parameters."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageConfig:
    """One of several stages of a training.

    Attributes:
        overrides: what is different in it, each as `key.path=value`.
    """

    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SelfStudyConfig:
    """Texts that the teacher of a distillation writes about each context, anew in every step.

    Attributes:
        texts: how many for each context; 0 for none.
        length: tokens of each at most, behind its prompt.
        temperature: of the sampling.
        prompts: what texts begin with, in turn.
        answer: what is put behind each text, such as the line of its answer, which the teacher then writes, of as many tokens
            again; None for nothing.
    """

    texts: int = 0
    length: int = 32
    temperature: float = 1.0
    prompts: list[str] = field(
        default_factory=lambda: ["\n\nQuestion: What", "\n\nIn short,", " It", " The"]
    )
    answer: str | None = None

    def __post_init__(self) -> None:
        if self.texts < 0 or self.length < 1 or self.temperature <= 0:
            raise ConfigError(
                f"training.self_study must have texts of at least 0, a length of at least 1 and a positive temperature, got "
                f"{self.texts}, {self.length} and {self.temperature}"
            )
        if not self.prompts or not all(self.prompts):
            raise ConfigError(
                "training.self_study.prompts must hold at least one prompt, and none that is empty"
            )
        if self.answer == "":
            raise ConfigError(
                "training.self_study.answer must be null or what stands before an answer, such as '\\nAnswer:', got an empty text"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How `memwrite train` trains.

    Attributes:
        out: run folder; an unfinished run in it is resumed.
        start: a finished run's folder, whose weights are where training starts from as far as they fit.
        stages: trainings one after the other, each starting from the one before; none means one training.
        steps: optimiser steps.
        objective: "labels", the cross-entropy of the task's answers, or "distillation", the divergence from what the same
            model predicts with the context in sight, at the places where the task has labels.
        self_study: further texts for a distillation, which the teacher writes itself.
        until: exact match on held-out examples, above 0 and at most 1, from which on training stops; looked at in
            every evaluation.
        batch_size: examples per step, over all processes.
        accumulate: parts that each process takes its share of a batch in, one after the other.
        learning_rate: the peak; after the last step it is a fiftieth of it.
        schedule: "cosine" from the peak on, or "stable": at the peak for the first half of the steps, then falling
            with the square root of what has passed of the rest (arXiv 2404.06395, 2405.18392).
        warmup: steps of linear warm-up.
        weight_decay: of AdamW, on matrices.
        clip: largest norm of the gradient.
        every: steps between evaluations and checkpoints.
        evaluated: held-out examples per evaluation, taken at even distances; None for all.
        bf16: mixed precision; wants a GPU.
        tensorboard: whether the log is written for TensorBoard as well; wants the package of that name.
        save_dtype: dtype of the saved backbone; "float16" halves its size.
    """

    out: str = "runs/train"
    start: str | None = None
    stages: list[StageConfig] = field(default_factory=list)
    steps: int = 1000
    objective: str = "labels"
    self_study: SelfStudyConfig = field(default_factory=SelfStudyConfig)
    until: float | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    every: int = 250
    evaluated: int | None = None
    bf16: bool = False
    tensorboard: bool = False
    save_dtype: str = "float32"

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "accumulate", "every", "evaluated"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"training.{key} must be at least 1, got {value}")
        if self.until is not None and not 0 < self.until <= 1:
            raise ConfigError(f"training.until must be above 0 and at most 1, got {self.until}")
        for key, options in (
            ("save_dtype", DTYPES),
            ("schedule", SCHEDULES),
            ("objective", OBJECTIVES),
        ):
            value = getattr(self, key)
            if value not in options:
                raise ConfigError(f"training.{key} = '{value}': {did_you_mean(value, options)}")
        if self.self_study.texts and self.objective != "distillation":
            raise ConfigError(
                "training.self_study needs a teacher: set training.objective=distillation"
            )
        if self.learning_rate <= 0:
            raise ConfigError(f"training.learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class Config:
    """The whole of a configuration file."""

    backbone: BackboneConfig
    writer: PartConfig = field(default_factory=lambda: PartConfig("no-memory"))
    reader: PartConfig = field(default_factory=lambda: PartConfig("no-memory"))
    task: PartConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training.objective == "distillation" and self.backbone.trainable:
            raise ConfigError(
                "training.objective=distillation needs a teacher that stays as it is: train corrections of the model "
                "(backbone.lora_rank) in place of its weights (backbone.trainable)"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed must be between 0 and {(1 << 32) - 1}, got {self.seed}")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or take a mapping), apply `key.path=value` overrides, validate.

    A file may name one that it is based on (`base: other.yaml`, relative to its own folder) and say only what is
    different. Where it or an override gives the writer, reader or task another name, the old one's parameters are dropped.

    Raises:
        ConfigError: a file is missing or not YAML, or is based on itself; or a key, type or value is wrong.
    """
    layers = [*_layers(source), parse_overrides(overrides)]
    for layer in layers:
        _check_mappings(layer)
    return merge(Config, _without_replaced(layers), "")


def _layers(
    source: str | Path | Mapping[str, Any], above: tuple[Path, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Yield what `source` is based on, then what it says itself; the files `above` are based on it."""
    if isinstance(source, Mapping):
        layer, folder = dict(source), Path()
    else:
        layer, folder, path = read_yaml(Path(source)), Path(source).parent, Path(source).resolve()
        if path in above:
            raise ConfigError(f"'{source}' is based on itself: remove its 'base'")
        above = (*above, path)
    base = layer.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"base should be the path of a configuration file, got {base!r}")
        yield from _layers(folder / base, above)
    yield layer


def _without_replaced(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop from the layers the parameters of parts that a later layer exchanges for others."""
    kept: list[dict[str, Any]] = []
    for layer in layers:
        for part in ("writer", "reader", "task"):
            name = (layer.get(part) or {}).get("name")
            names = [n for earlier in kept if (n := (earlier.get(part) or {}).get("name"))]
            if names and name not in (None, names[-1]):
                kept = [{**earlier, part: {"name": name}} for earlier in kept]
        kept.append(layer)
    return kept


def part_config(kind: type[T], params: Mapping[str, Any], where: str) -> T:
    """Return `params` as the plugin's own dataclass; `where` ("writer.params") goes into messages.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    return merge(kind, [dict(params)], f"{where}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain data, fit for JSON and YAML."""
    return dataclasses.asdict(config)


def _check_mappings(layer: Mapping[str, Any]) -> None:
    """Refuse a value in the place of a mapping; OmegaConf's own message does not say where it stands."""
    for key in ("backbone", "writer", "reader", "task", "training"):
        part = layer.get(key)
        inner = part.get("params") if isinstance(part, Mapping) else None
        for where, value in ((key, part), (f"{key}.params", inner)):
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"{where} should be a mapping with its keys, got {value!r}")
