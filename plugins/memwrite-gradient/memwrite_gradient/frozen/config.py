"""The settings of writers that descend on a frozen model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OBJECTIVES = ("distillation", "reconstruction")
OPTIMIZERS = ("adam", "sgd")
START = "start must be first-tokens, random, another writer's name, {name: ..., params: {...}} or {text: ...}"


@dataclass(frozen=True)
class StudyConfig:
    """Configures the texts on which model with context and model with memory are compared.

    Attributes:
        texts: N, texts that the model writes itself with the context in sight, before the first step.
        per_step: texts of each step, the next ones in turn, quotes included.
        quotes: passages of the context among the texts of each step, in turn: their repetition is a text that the model
            with the context knows, and costs no writing.
        length: tokens of each text, prompt included; a context of fewer tokens gets shorter texts.
        temperature: of the sampling.
        prompts: what texts begin with, in turn; an empty one continues the context.
        file: a UTF-8 file with a text on each line, taken instead of self-written ones; cut to `length`.
        top_k: compare only the k tokens that the model with the context finds most probable; by default all.
        held_out: self-written texts that are kept back, to measure the value of the memory and to keep the best of its
            steps; with `quotes`, as many of these have as much say in the second.

    Raises:
        ValueError: a value is out of range.
    """

    texts: int = 20
    per_step: int = 2
    quotes: int = 1
    length: int = 48
    temperature: float = 1.0
    prompts: list[str] = field(default_factory=lambda: [""])
    file: str | None = None
    top_k: int | None = None
    held_out: int = 4

    def __post_init__(self) -> None:
        for name, least in (
            ("texts", 1), ("per_step", 1), ("quotes", 0), ("length", 2), ("top_k", 1), ("held_out", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"study.{name} must be at least {least}, got {value}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"study.temperature must be positive, got {self.temperature}")
        if self.quotes > self.per_step:
            raise ValueError(
                f"study.quotes must be at most study.per_step, got {self.quotes} of {self.per_step}"
            )
        if not self.prompts:
            raise ValueError("study.prompts must hold at least one prompt, which may be empty")


@dataclass(frozen=True)
class DescentConfig:
    """Configures the descent of one memory per context.

    Attributes:
        slots: M.
        steps: gradient steps per write; 0 leaves the start as it is.
        start: where the descent starts: "first-tokens" of the context, "random" tokens, {text: ...}, or what another
            writer makes of the context, by its name or as {name: ..., params: {...}}; it is given the number of slots. A
            memory that holds something already goes on from there. A descent for distillation never ends in a worse memory
            than it starts from, by `study.held_out`.
        objective: "distillation": the model with the memory is to predict texts like the model with the context
            (Cartridges, arXiv 2506.06266). "reconstruction": it is to predict the context itself, which on a frozen
            model makes a memory that can be recited but not used.
        optimizer: "adam", or "sgd" for plain gradient steps.
        lr: step size, as a share of the root mean square of what moves together: the keys or values of a head, or all
            vectors; with "sgd" it is the factor of the gradient. Keys move by a tenth of it.
        decay: let the step size fall along a half cosine to a twentieth.
        seed: of the random numbers that texts and a random start are drawn with.
        study: the texts.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 16
    steps: int = 20
    start: Any = "first-tokens"
    objective: str = "distillation"
    optimizer: str = "adam"
    lr: float = 0.04
    decay: bool = True
    seed: int = 0
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        for name, choices in (("objective", OBJECTIVES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(choices)}, got '{getattr(self, name)}'"
                )
        given = self.start
        known = isinstance(given, str)
        if isinstance(given, dict):
            known = given.keys() == {"text"} or {"name"} <= given.keys() <= {"name", "params"}
        if not known:
            raise ValueError(f"{START}, got {given!r}")
        if self.objective == "reconstruction" and (self.study.file or self.study.top_k):
            raise ValueError("study.file and study.top_k go with objective distillation")


@dataclass(frozen=True)
class CartridgeConfig(DescentConfig):
    """Configures a memory of keys and values; see `DescentConfig`.

    Attributes:
        frozen_sink: leave the first slot as it is: much attention rests on the first token of every text, and moving
            it disturbs all of them.

    Raises:
        ValueError: a value is out of range.
    """

    start: Any = "compact"
    frozen_sink: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen_sink and self.slots == 1 and self.steps:
            raise ValueError(
                "with frozen_sink there must be at least 2 slots, or none of them moves"
            )


@dataclass(frozen=True)
class SoftPromptConfig(DescentConfig):
    """Configures a memory of prefix vectors; see `DescentConfig`. They are fewer numbers, and take larger steps."""

    slots: int = 8
    steps: int = 60
    lr: float = 0.2
    study: StudyConfig = field(default_factory=lambda: StudyConfig(texts=48, quotes=0))
