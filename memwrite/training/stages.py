"""A training in stages: each is a run of its own, which starts from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.config import Config, load_config, to_dict
from memwrite.errors import ConfigError, MemwriteError

STAGES, LOG = "stages", "log.jsonl"
_OWN = ("training.out", "training.start", "training.stages")


@dataclass(frozen=True)
class Stage:
    """One run of a training.

    Attributes:
        config: the whole of it.
        number: from 1; None where the training has no stages.
    """

    config: Config
    number: int | None = None

    @property
    def folder(self) -> Path:
        """Where its run goes."""
        return Path(self.config.training.out)

    @property
    def log(self) -> Path:
        """Its log, which begins with that of the stages before."""
        return self.folder / LOG

    @property
    def earlier_log(self) -> Path | None:
        """The log of the stage before."""
        start = self.config.training.start
        return Path(start) / LOG if start and (self.number or 1) > 1 else None


def planned(config: Config) -> list[Stage]:
    """Return the stages of `config`: all but the last in folders below that of the whole training.

    Raises:
        ConfigError: a stage's overrides are wrong, or change what stages are made of.
    """
    return [*_stages(config)] or [Stage(config)]


def _stages(config: Config) -> Iterator[Stage]:
    stages, out, start = config.training.stages, config.training.out, config.training.start
    for number, stage in enumerate(stages, 1):
        folder = out if number == len(stages) else f"{out}/{STAGES}/{number}"
        with naming(number):
            base = _without_replaced(to_dict(config), stage.overrides)
            base["training"] |= {"out": folder, "start": start, "stages": []}
            if folder != out:  # nothing is rounded on the way
                base["training"]["save_dtype"] = base["backbone"]["dtype"]
            made = Stage(load_config(base, stage.overrides), number)
        yield made
        start = folder


@contextmanager
def naming(number: int | None) -> Iterator[None]:
    """Within this, errors say the stage that they are about; None says nothing."""
    try:
        yield
    except MemwriteError as error:
        if number is None:
            raise
        raise type(error)(f"stage {number} of training.stages: {error}") from None


def _without_replaced(base: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Drop from `base` the parameters of parts that are exchanged for others."""
    for override in overrides:
        key, _, value = override.partition("=")
        part, _, name = key.partition(".")
        if key in _OWN:
            raise ConfigError(f"it cannot change {key}, which follows from its place")
        if part in ("writer", "reader", "task") and name == "name" and base[part]:
            base[part]["params"] = {} if value != base[part]["name"] else base[part]["params"]
    return base
