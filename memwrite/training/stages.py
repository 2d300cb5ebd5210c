"""A training in stages: each is a run of its own, which starts from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
            _check_own(stage.overrides)
            base = to_dict(config)
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


def _check_own(overrides: Sequence[str]) -> None:
    """Refuse overrides of what stages are made of.

    Raises:
        ConfigError: there is one.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OWN:
            raise ConfigError(f"it cannot change {key}, which follows from its place")
