"""How many slots a memory keeps: a number, so many bytes, or a share of the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memwrite.errors import ConfigError
from memwrite.protocols import BackboneInfo
from memwrite.state import StateSpec, TensorSpec


@dataclass(frozen=True)
class BudgetConfig:
    """Configures what every writer of this family has in common.

    Attributes:
        slots: M, keys and values that each head of each layer keeps.
        bytes: of a state, in place of `slots`: as many slots as they hold.
        ratio: share of the context's tokens, in place of `slots`: the state then grows with the context.
        sinks: the first tokens of a text are always kept, so many of them.
        recent: the last tokens are always kept, so many of them.
        used: share of the slots that is used, by those heads of a layer that score highest; a bias of -inf hides the others.
            The state is as large as if all were: this saves attention, not bytes.
        rewind: move the keys after each write to their places within the memory. Without it they stay where they stood
            until the model's positions run out.

    Raises:
        ValueError: a value is out of range, or sinks and recent tokens leave no slot to choose.
    """

    slots: int = 32
    bytes: int | None = None
    ratio: float | None = None
    sinks: int = 1
    recent: int = 0
    used: float = 1.0
    rewind: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("sinks", "recent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.used <= 1:
            raise ValueError(f"used must be above 0 and at most 1, got {self.used}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        if self.bytes is not None and self.ratio is not None:
            raise ValueError("give bytes or a ratio, not both")
        if self.bytes is None and self.ratio is None and self.sinks + self.recent > self.slots:
            raise ValueError(
                f"sinks and recent must fit the slots, got {self.sinks} + {self.recent} of {self.slots}"
            )


def spec_of(
    config: BudgetConfig,
    info: BackboneInfo,
    latent: tuple[str, ...],
    bias: bool = False,
    stored: Callable[[StateSpec], StateSpec] = lambda spec: spec,
) -> StateSpec:
    """Return the spec of states of this budget.

    Args:
        config: with `ratio` the spec is of no slots, and unbounded.
        info: of the backbone.
        latent: names of the numbers that each slot carries for further writes.
        bias: whether slots have one.
        stored: of such a spec gives that of what is stored, of which the bytes are.

    Raises:
        ConfigError: the bytes do not hold one slot, or fewer than sinks and recent tokens.
    """
    if config.ratio is not None:
        return spec_of_slots(0, info, latent, bias, bounded=False)
    slots = config.slots
    if config.bytes is not None:
        fixed = stored(spec_of_slots(0, info, latent, bias)).nbytes
        each = stored(spec_of_slots(1, info, latent, bias)).nbytes - fixed
        slots = (config.bytes - fixed) // each
        least = max(config.sinks + config.recent, 1)
        if slots < least:
            raise ConfigError(
                f"writer.params.bytes: {config.bytes} bytes hold {max(slots, 0)} slots of {each} bytes, but at least {least} are needed: "
                f"give {fixed + least * each}"
            )
    return spec_of_slots(slots, info, latent, bias)


def spec_of_slots(
    slots: int, info: BackboneInfo, latent: tuple[str, ...], bias: bool, bounded: bool = True
) -> StateSpec:
    """Return the spec of states of exactly so many slots."""
    each = (info.layers, info.kv_heads, slots)
    tensors: dict[str, TensorSpec | tuple[int, ...]] = {
        "keys": (*each, info.head_dim),
        "values": (*each, info.head_dim),
        "mask": (slots,),
        "next_position": (),
        "latent.position": TensorSpec(each, torch.int32),
        **{f"latent.{name}": TensorSpec(each, info.state_dtype) for name in latent},
    }
    if bias:
        tensors["bias"] = TensorSpec(each, info.state_dtype)
    return StateSpec("keyvalue", tensors, tuple(range(info.layers)), info.dtype, bounded)


def counts(config: BudgetConfig, slots: int, before: Tensor, new: Tensor) -> Tensor:
    """Return how many slots each row keeps, (B,).

    Args:
        config: the budget.
        slots: M of a bounded state.
        before: (B,), slots that are kept already.
        new: (B,), tokens that are read now.
    """
    if config.ratio is None:
        return (before + new).clamp(max=slots)
    least = torch.minimum(new, torch.full_like(new, config.sinks + config.recent))
    share = (new * config.ratio - 1e-9).ceil().to(new.dtype)
    return before + torch.maximum(share, least)
