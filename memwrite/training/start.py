"""Warm start: a training begins with the weights of a finished run, as far as they fit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from memwrite.backbones.adapters import ADAPTER_FOLDER
from memwrite.backbones.loading import MODEL_FOLDER, load_backbone
from memwrite.checkpoints.imported import read_weights
from memwrite.checkpoints.run_folder import CONFIG_FILE, WEIGHTS_FILE
from memwrite.config import BackboneConfig, Config, load_config
from memwrite.errors import ConfigError
from memwrite.memory import Memory


def begin(config: Config, speak: bool = True) -> Memory:
    """Build the memory that `config` describes, with the weights of `training.start`.

    The backbone's are there before writer and reader are built, which may take their own first weights from it. Where the
    backbone is that run's own model, named by `backbone.path`, it has them already.

    Args:
        config: the memory to train.
        speak: whether to say on standard error, in one line, which weights did not fit.

    Raises:
        ConfigError: nothing of that run fits, or there is none.
        StorageError: its files are damaged.
    """
    if config.training.start is None:
        return Memory.from_config(config)
    own = Path(config.backbone.path or "") == Path(config.training.start)
    whole = adapter_of(config) is None and not own
    start = Start(config.training.start, whole)
    backbone = load_backbone(config.backbone, config.seed)
    if whole:
        # What another run made of the model is in no folder that the config names.
        backbone.needs_saving |= start.put("backbone", backbone.model) > 0
    memory = Memory.from_config(config, backbone=backbone)
    for part in ("writer", "reader"):
        start.put(part, getattr(memory, part))
    if (line := start.report()) and speak:
        print(line, file=sys.stderr)
    return memory


def adapter_of(config: Config) -> Path | None:
    """Return the folder of the corrections of `training.start`, where they can be trained on as they are: those of the same
    model and layers, of the same rank.
    """
    run = Path(config.training.start or "")
    folder = run / ADAPTER_FOLDER
    if config.training.start is None or not config.backbone.lora_rank or not folder.is_dir():
        return None
    names = ("path", "adapter", "lora_rank", "lora_alpha", "lora_from")
    before = load_config(run / CONFIG_FILE).backbone
    same = all(getattr(before, name) == getattr(config.backbone, name) for name in names)
    return folder if same else None


class Start:
    """The weights of a finished run, by name: "backbone.…", "writer.…", "reader.…".

    Args:
        run: its folder.
        backbone: whether the backbone's are wanted; they are not where its corrections are trained on.

    Raises:
        ConfigError: it is no folder of a finished run.
        StorageError: its weights are damaged.
    """

    def __init__(self, run: str, backbone: bool) -> None:
        folder = Path(run)
        if not (folder / CONFIG_FILE).exists():
            raise ConfigError(f"training.start: '{run}' is not the folder of a finished run")
        self._run, self._whole = run, backbone
        self._weights: dict[str, Tensor] = {}
        if backbone and any((folder / own).is_dir() for own in (MODEL_FOLDER, ADAPTER_FOLDER)):
            model = load_backbone(BackboneConfig(path=run)).model
            self._weights |= {f"backbone.{name}": w for name, w in model.state_dict().items()}
        if (folder / WEIGHTS_FILE).exists():
            self._weights |= read_weights(folder / WEIGHTS_FILE)
        self._taken: set[str] = set()
        self._new: list[str] = []
        self._misfits: list[str] = []

    @torch.no_grad()
    def put(self, part: str, module: nn.Module) -> int:
        """Copy into `module` every weight of `part` that has its name and shape there; return how many."""
        before = len(self._taken)
        for name, weight in module.state_dict().items():
            full = f"{part}.{name}"
            source = self._weights.get(full)
            if source is None:
                self._new.append(full)
            elif source.shape != weight.shape:
                self._misfits.append(full)
            else:
                weight.copy_(source)
                self._taken.add(full)
        return len(self._taken) - before

    def report(self) -> str:
        """One line on what was not taken; empty where everything was.

        Raises:
            ConfigError: nothing was taken.
        """
        unused = self._weights.keys() - self._taken - {*self._misfits}
        leftovers = {
            "not in it": self._new,
            "of another shape": self._misfits,
            "not needed here": sorted(unused),
        }
        rest = "; ".join(f"{what}: {_grouped(names)}" for what, names in leftovers.items() if names)
        if not self._taken and self._whole:
            raise ConfigError(
                f"training.start: no weight of '{self._run}' fits: {rest or 'it has none'}"
            )
        return rest and f"Started from {len(self._taken)} weights of '{self._run}'; {rest}"


def _grouped(names: Iterable[str]) -> str:
    """Group names by their beginnings, with counts."""
    counted = Counter(".".join(name.split(".")[:3]) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in counted.items())
