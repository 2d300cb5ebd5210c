"""A training run from a config to a finished run folder; an unfinished one is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import yaml
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from memwrite.config import Config, load_config, part_config, to_dict
from memwrite.errors import ConfigError
from memwrite.memory import Memory
from memwrite.plugins import registry
from memwrite.runs import CONFIG_FILE
from memwrite.storage import make_folder, write_bytes
from memwrite.tasks.base import Texts
from memwrite.tokenizer import LEARNT, learnt_codec
from memwrite.training.trainer import CHECKPOINTS, fit

REQUESTED, TOKENIZER = "requested.yaml", "tokenizer"


def train(source: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train what the config describes and return its run folder.

    Raises:
        ConfigError: the config is wrong, or the run folder holds another or a finished run.
    """
    requested = load_config(source, overrides)
    if requested.task is None:
        raise ConfigError(f"'{source}' has no task to train on: add task: {{name: text, ...}}")
    plugin = registry().task(requested.task.name)
    params = part_config(plugin.config, requested.task.params, "task.params")
    out = _claim(requested)
    config = _with_tokenizer(requested, params, out)
    memory = Memory.from_config(config)
    if not any(p.requires_grad for p in memory.parameters()):
        raise ConfigError(
            "nothing to train: set backbone.trainable=true, or take a writer that learns"
        )
    task = plugin.build(params, memory.backbone.codec)
    folder = out / CHECKPOINTS
    fit(memory, task, config, out, _last_checkpoint(folder))
    memory.config = requested
    memory.save_run(out)
    for leftover in (folder, out / TOKENIZER):
        shutil.rmtree(leftover, ignore_errors=True)
    (out / REQUESTED).unlink()
    return out


def _claim(config: Config) -> Path:
    """The run folder, new or with an unfinished run of this very config."""
    out = Path(config.training.out)
    if (out / CONFIG_FILE).exists():
        raise ConfigError(
            f"'{out}' already holds a finished run: set training.out to another folder"
        )
    make_folder(out)
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    mark = out / REQUESTED
    if mark.exists() and mark.read_text() != text:
        raise ConfigError(
            f"'{out}' holds an unfinished run of another configuration ({mark}): set training.out to "
            f"another folder"
        )
    write_bytes(mark, text.encode())
    return out


def _last_checkpoint(folder: Path) -> str | None:
    """The newest one that was saved to its end; the Trainer writes its state last."""
    folder.mkdir(exist_ok=True)
    while (found := get_last_checkpoint(folder)) is not None:
        try:
            json.loads((Path(found) / TRAINER_STATE_NAME).read_bytes())
        except (OSError, ValueError):
            shutil.rmtree(found)
        else:
            break
    return cast("str | None", found)


def _with_tokenizer(config: Config, task: object, out: Path) -> Config:
    """With the name of a tokenizer that is `LEARNT` replaced by one learnt from the training text."""
    kind = config.backbone.tokenizer
    if kind not in LEARNT:
        return config
    if not isinstance(task, Texts):
        raise ConfigError(
            f"backbone.tokenizer={kind} is learnt from the text of a task, and this one has none: set another one"
        )
    folder = out / TOKENIZER
    if not folder.is_dir():
        learnt_codec(kind, task.texts(), config.backbone.params.get("vocab_size")).save(folder)
    return replace(config, backbone=replace(config.backbone, tokenizer=str(folder)))
