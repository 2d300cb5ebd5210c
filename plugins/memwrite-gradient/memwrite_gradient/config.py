"""The settings of the gradient writer."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("sgd", "adam")
ORDERS = ("none", "first", "second")
LEARNED = ("none", "one", "each")
PROJECTIONS = ("none", "shared", "per-example")


@dataclass(frozen=True)
class GradientConfig:
    """Configures GradMem's inner loop.

    Attributes:
        slots: M, memory vectors.
        steps: K, gradient steps per write.
        most_steps: in training, draw K anew for every write, from `steps` to this.
        window: predict the context in blocks of so many tokens side by side, each preceded by a quarter as many tokens
            of context: a token sees from W/4 to 5W/4 earlier ones beside the memory, and a write's cost grows with the context, not
            its square. All tokens see all earlier ones where it is not set, as in GradMem.
        optimizer: "sgd" as in GradMem, or "adam" for many steps into a model that was never meta-trained.
        lr: inner step size.
        learned_lr: what is learned of the step size with the other parameters, starting at `lr`: "none", "one" for
            all, or "each" number's own (Meta-SGD, arXiv 1707.09835).
        decay: let the step size fall along a half cosine to a twentieth.
        clip_value: clip every element of the gradient to [-c, c].
        clip_norm: scale an example's gradient down to this norm.
        order: what flows back through the steps in training: "none" (the memory is detached after each step),
            "first" (gradients are constants), "second" (everything; needs `backbone.attention: eager`).
        second_steps: with "second": only the last k steps, those before them as "first".
        recompute: in training, run each second-order step once more in the backward pass: the memory that training takes
            no longer grows with the steps, which take a third more time.
        compile: in training, compile the second-order step with torch.compile: it takes a minute once for each shape of
            batch, and a quarter off the step's time from then on. Needs a C++ compiler.
        backtrack: outside of training, halve a step, up to twenty times, that leads to numbers that are not finite;
            else the write stops there.
        settled_weight: weight in the descended loss, from 0 to 1, of confident tokens: those that are the model's first
            choice by a margin already. 1 is GradMem; less spends a small memory on what is still wrong.
        stop_when_exact: stop an example once every token of its context is the model's first choice.
        init_std: standard deviation of the learned start of slots and control tokens.
        control_tokens: learned embeddings on either side of the slots, others in writing than in reading.
        projection: a linear map between slots and model: "none", "shared" (learned), or "per-example" (each
            example's own weights, descended along with its slots).
        write_head: a vocabulary head of its own for the reconstruction, starting as the model's.
        reconstruction_weight: of the last step's reconstruction loss in the training loss; 0 for none.
        lora_rank: rank of low-rank corrections of q, k, v, o that act while writing only; 0 for none.
        lora_alpha: they are scaled by alpha / rank.

    Raises:
        ValueError: a value is out of range.
    """

    slots: int = 8
    steps: int = 1
    most_steps: int | None = None
    window: int | None = None
    optimizer: str = "sgd"
    lr: float = 0.04
    learned_lr: str = "none"
    decay: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    order: str = "second"
    second_steps: int | None = None
    recompute: bool = False
    compile: bool = False
    backtrack: bool = False
    settled_weight: float = 1.0
    stop_when_exact: bool = False
    init_std: float = 0.02
    control_tokens: int = 0
    projection: str = "none"
    write_head: bool = False
    reconstruction_weight: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        for name in ("slots", "steps", "window", "second_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "clip_value", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("init_std", "control_tokens", "reconstruction_weight", "lora_rank"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.settled_weight <= 1:
            raise ValueError(f"settled_weight must be from 0 to 1, got {self.settled_weight}")
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("order", ORDERS),
            ("learned_lr", LEARNED),
            ("projection", PROJECTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(choices)}, got '{getattr(self, name)}'"
                )
        if self.most_steps is not None and self.most_steps < self.steps:
            raise ValueError(f"most_steps must be at least steps, got {self.most_steps}")
        for name in ("recompute", "compile", "backtrack"):
            if getattr(self, name) and self.optimizer != "sgd":
                raise ValueError(f"{name} goes with optimizer sgd, not '{self.optimizer}'")
        if self.compile and self.lora_rank:
            raise ValueError("compile goes without lora_rank: corrections cannot be compiled")
        if self.second_steps is not None and self.order != "second":
            raise ValueError(f"second_steps goes with order second, not '{self.order}'")
