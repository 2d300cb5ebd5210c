"""A trained run as the capacity report wants it: what it is, what it was trained on, how that went."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import Config, PartConfig, load_config, part_config, to_dict
from memwrite.errors import ConfigError, InputError
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite.tasks.kv import PairsConfig
from memwrite.utils.hashing import exact_digest_of

README, LOG = "README.md", "log.jsonl"
BASELINES = ("full-context", "no-memory")


@dataclass(frozen=True)
class Run:
    """A run folder whose task is to remember key-value pairs.

    Attributes:
        label: what the report calls it.
        folder: where it is.
        config: as in the folder.
        fingerprint: 32 hex digits, of its config, backbone and weights; where it was saved is left out.
        pairs: N, that it was trained on.
        steps: every K that it was trained with; empty if its writer takes no steps.
        device: that it is measured on.
    """

    label: str
    folder: Path
    config: Config
    fingerprint: str
    pairs: int
    steps: tuple[int, ...]
    device: str

    @property
    def task(self) -> PartConfig:
        """What it was trained on."""
        assert self.config.task is not None
        return self.config.task

    @property
    def is_baseline(self) -> bool:
        """Whether it keeps nothing or everything."""
        return self.config.writer.name in BASELINES

    def memory(self, steps: int | None) -> Memory:
        """Loaded, in evaluation mode, writing with K = `steps`; None for a writer that takes none.

        Raises:
            ConfigError, StorageError: it cannot be.
        """
        changes = [f"backbone.device={self.device}"]
        plugin = registry().writer(self.config.writer.name)
        if steps is not None:
            changes.append(f"writer.params.{plugin.steps}={steps}")
            if plugin.max_steps is not None:
                changes.append(f"writer.params.{plugin.max_steps}=null")
        return Memory.from_config(self.folder, changes)

    def as_dict(self) -> dict[str, Any]:
        """What the report tells of it, as plain data."""
        return {
            "label": self.label,
            "folder": str(self.folder),
            "fingerprint": self.fingerprint,
            "seed": self.config.seed,
            "config": to_dict(self.config),
            "training": training_digest(self.folder / LOG),
            "readme": _text(self.folder / README),
        }


def open_runs(folders: Sequence[Path], device: str | None = None) -> list[Run]:
    """The runs in these folders, each of which is loaded once to see that it can be.

    Args:
        folders: of finished runs on a task with pairs.
        device: to measure on; by default where each was trained.

    Raises:
        ConfigError: a folder holds no such run.
        InputError: two of them hold the same run, so that one result would count twice.
    """
    labels = _labels(folders)
    runs = [_open(folder, label, device) for folder, label in zip(folders, labels, strict=True)]
    known: dict[str, Run] = {}
    for run in runs:
        if (other := known.setdefault(run.fingerprint, run)) is not run:
            raise InputError(
                f"'{other.folder}' and '{run.folder}' hold the same run, which would count twice: "
                f"give one of them"
            )
    return runs


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names; their paths, if two have one name."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [str(folder) for folder in folders]


def _open(folder: Path, label: str, device: str | None) -> Run:
    if not folder.is_dir():
        raise ConfigError(f"'{folder}' is no run folder: make one with `memwrite train`")
    config = load_config(folder / CONFIG_FILE)
    if config.task is None:
        raise ConfigError(f"'{folder}' was trained on no task, and capacity is counted in pairs")
    task = registry().task(config.task.name)
    if not issubclass(task.config, PairsConfig):
        raise ConfigError(
            f"'{folder}' was trained on task '{config.task.name}', which has no pairs of keys and values: "
            f"measure it with `memwrite eval`"
        )
    params: Any = part_config(task.config, config.task.params, "task.params")
    writer = registry().writer(config.writer.name)
    written: Any = part_config(writer.config, config.writer.params, "writer.params")
    least: int | None = getattr(written, writer.steps) if writer.steps else None
    most: int | None = getattr(written, writer.max_steps) if writer.max_steps else None
    device = device or config.backbone.device
    memory = Memory.from_config(folder, [f"backbone.device={device}"])
    return Run(
        label=label,
        folder=folder,
        config=config,
        fingerprint=fingerprint(memory, config),
        pairs=params.pairs,
        steps=() if least is None else tuple(range(least, (most or least) + 1)),
        device=device,
    )


def fingerprint(memory: Memory, config: Config) -> str:
    """32 hex digits of sha256 over `config`, the backbone, and the weights of writer and reader.

    Args:
        memory: built from
        config: whose `training.out` and `backbone.device` do not count.
    """
    described = to_dict(config)
    del described["training"]["out"], described["backbone"]["device"]
    text = json.dumps([described, memory.backbone.fingerprint], sort_keys=True)
    weights = (memory.writer.state_dict(), memory.reader.state_dict())
    return exact_digest_of(text, *weights)[:32]


def training_digest(log: Path) -> dict[str, Any] | None:
    """Steps and seconds of all stages of a training, its last losses and its curriculum; None if there is no log.

    Lines that are no JSON objects are passed over: a log ends where a run was cut off.
    """
    steps: dict[object, int] = {}
    curriculum: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for entry in _entries(log):
        last |= entry
        stage = entry.get("training_stage")
        steps[stage] = max(steps.get(stage, 0), entry.get("step", 0))
        if "stage" in entry and (not curriculum or curriculum[-1]["stage"] != entry["stage"]):
            curriculum.append({"stage": entry["stage"], "step": sum(steps.values())})
    shown = ("seconds", "loss", "eval_loss", "eval_exact_match")
    told = {name: last[name] for name in shown if name in last}
    return {"steps": sum(steps.values()), **told, "curriculum": curriculum} if last else None


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    for line in (_text(log) or "").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
