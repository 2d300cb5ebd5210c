"""A training from a config to a finished run folder; an unfinished one is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from memwrite.backbones import adapters
from memwrite.backbones.loading import MODEL_FOLDER
from memwrite.backbones.tokenizers import LEARNT, Tokenizer, learnt_tokenizer, load_tokenizer
from memwrite.checkpoints.run_folder import save_run
from memwrite.config import Config, load_config, part_config
from memwrite.errors import ConfigError
from memwrite.plugins import registry
from memwrite.tasks.base import Texts
from memwrite.training import lora
from memwrite.training.folder import TOKENIZER, claim, finished, last_checkpoint, tidy
from memwrite.training.stages import Stage, naming, planned
from memwrite.training.start import adapter_of, begin
from memwrite.training.trainer import fit
from memwrite.utils.cpu import tuned_cpu
from memwrite.utils.extras import extra

with extra("train"):
    from accelerate import PartialState


@tuned_cpu()
def train(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Path:
    """Train what the config describes and return its run folder.

    Every process that torchrun started calls it; only the first one writes files.

    Raises:
        ConfigError: the config is wrong, or the run folder holds another or a finished run.
        DivergenceError: a loss or a gradient is not finite.
    """
    requested = load_config(source, overrides)
    processes = PartialState(cpu=requested.backbone.device == "cpu")
    stages = planned(requested)
    for stage in stages:
        with naming(stage.number):
            _check(stage.config, processes.num_processes)
    claim(requested, write=processes.is_main_process)
    processes.wait_for_everyone()
    for stage in stages:
        if not finished(stage.folder):
            _run(stage)
        if processes.is_main_process:
            tidy(stage.folder, staged=len(stages) > 1)
        processes.wait_for_everyone()
    processes.destroy_process_group()
    return Path(requested.training.out)


def _check(config: Config, process_count: int) -> None:
    """Find mistakes of every stage before the first one begins.

    Raises:
        ConfigError, PluginError: this config cannot be trained.
    """
    if config.task is None:
        raise ConfigError("the config has no task to train on: add task: {name: text, ...}")
    plugins = registry()
    for part, plugin in (
        (config.writer, plugins.writer(config.writer.name)),
        (config.reader, plugins.reader(config.reader.name)),
        (config.task, plugins.task(config.task.name)),
    ):
        part_config(plugin.config, part.params, f"{plugin.role}.params")
    training = config.training
    parts = process_count * training.accumulate
    if training.batch_size % parts:
        raise ConfigError(
            f"training.batch_size = {training.batch_size} cannot be split evenly over {process_count} process(es) "
            f"times training.accumulate = {training.accumulate}: make it a multiple of {parts}"
        )
    if training.bf16 and config.backbone.device == "cpu":
        raise ConfigError("training.bf16 needs a GPU: set backbone.device=cuda, or leave it out")
    if training.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard needs a package that is not installed: pip install 'memwrite[tensorboard]'"
        )


def _run(stage: Stage) -> None:
    """Run one training, from its start or last checkpoint to its run folder."""
    processes, requested = PartialState(), stage.config
    assert requested.task is not None
    plugin = registry().task(requested.task.name)
    params: Any = part_config(plugin.config, requested.task.params, "task.params")
    with processes.main_process_first():
        stage.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = last_checkpoint(stage.folder)
        config = _with_device(_with_tokenizer(requested, params, stage.folder))
    memory = begin(config, speak=processes.is_main_process)
    if config.backbone.lora_rank:
        lora.attach(memory.model, config.backbone, config.seed)
        if (begun := adapter_of(config)) is not None:
            lora.put(memory.model, adapters.read(begun))
    if not any(p.requires_grad for p in memory.parameters()):
        raise ConfigError(
            "nothing to train: set backbone.trainable=true, or take a writer that learns"
        )
    fit(memory, plugin.build(params, memory.backbone.tokenizer), stage, checkpoint)
    adapter = None
    if config.backbone.lora_rank and not memory.backbone.needs_saving:
        dtype = getattr(torch, config.training.save_dtype)
        adapter = lora.taken(memory.model, config.backbone, dtype)
        adapter.apply(memory.model)
    lora.merge(memory.model)
    memory.config = requested
    if processes.is_main_process:
        save_run(memory.components, stage.folder, adapter)
    processes.wait_for_everyone()


def _with_device(config: Config) -> Config:
    """Return the config with the GPU of this process, where there are several."""
    processes, backbone = PartialState(), config.backbone
    if processes.num_processes == 1 or backbone.device == "cpu":
        return config
    return replace(
        config, backbone=replace(backbone, device=f"cuda:{processes.local_process_index}")
    )


def _with_tokenizer(config: Config, task: object, out: Path) -> Config:
    """Return the config with a tokenizer to be learnt replaced by that of the start run, or by one learnt from the
    training text.
    """
    kind, folder = config.backbone.tokenizer, out / TOKENIZER
    if kind not in LEARNT:
        return config
    if not folder.is_dir():
        unfinished = out / f".{TOKENIZER}"
        unfinished.mkdir(exist_ok=True)
        _tokenizer(config, task).save(unfinished)
        unfinished.replace(folder)
    return replace(config, backbone=replace(config.backbone, tokenizer=str(folder)))


def _tokenizer(config: Config, task: object) -> Tokenizer:
    kind, start = config.backbone.tokenizer, config.training.start
    if start is not None and (Path(start) / MODEL_FOLDER).is_dir():
        return load_tokenizer(Path(start) / MODEL_FOLDER)
    if not isinstance(task, Texts):
        raise ConfigError(
            f"backbone.tokenizer={kind} is learnt from the text of a task, and this one has none: set another one"
        )
    return learnt_tokenizer(kind, task.texts(), config.backbone.params.get("vocab_size"))
