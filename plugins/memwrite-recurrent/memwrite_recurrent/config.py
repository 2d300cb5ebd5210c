"""What can be set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memwrite.errors import ConfigError


@dataclass(frozen=True)
class NativeStateConfig:
    """Settings of the writer `native-state`.

    Attributes:
        attention: what is kept of the attention layers: "keep", all keys and values, so that reading goes on exactly and
            the state grows with the context; "last", those of the last `slots` tokens; "none", nothing, so that only the
            recurrent layers remember. With "last" and "none" the state has one size, whatever was written.
        slots: for "last".
    """

    attention: Literal["keep", "last", "none"] = "keep"
    slots: int = 0

    def __post_init__(self) -> None:
        if (self.attention == "last") != (self.slots > 0) or self.slots < 0:
            raise ConfigError(
                f"writer.params.slots is {self.slots} with attention: {self.attention}: give a number of at least 1 "
                f"with attention: last, and none with the others"
            )


@dataclass(frozen=True)
class NoParams:
    """The reader has nothing to set."""
