"""Convert released checkpoints into run folders, run folders and states into the formats of other projects, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from memwrite.backbones.loading import load_backbone
from memwrite.checkpoints import peft_state, prompt_embeds
from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import BackboneConfig, Config, PartConfig
from memwrite.errors import ConfigError, InputError, StorageError
from memwrite.memory import Memory
from memwrite.modules.low_rank import LowRank
from memwrite.plugins import Exported, Imported, registry
from memwrite.state import MemoryState

#: The format of states that `export_state` writes and `import_state` reads.
PEFT = "peft"
#: The format of a state and a prompt that `export_prompt` writes.
PROMPT_EMBEDS = "prompt-embeds"


def import_run(importer: str, folder: str | Path, out: str | Path, base: str | Path | None) -> None:
    """Make the run folder `out` from the released weights in `folder`.

    Args:
        importer: name of an installed importer, see `memwrite plugins`.
        folder: the folder that the importer reads.
        out: the run folder to make; it must not hold a run yet.
        base: folder with the language model's configuration and tokenizer, where `folder` has none.

    Raises:
        PluginError: no importer of that name is installed.
        StorageError: a file is missing, damaged, or does not fit the configuration.
        ConfigError: the configuration is incomplete, or asks for something that is not supported.
    """
    plugin = registry().importer(importer)
    if (Path(out) / CONFIG_FILE).exists():
        raise StorageError(f"'{out}' already holds a run: name another folder with --out")
    try:
        imported = plugin.load(Path(folder), None if base is None else Path(base))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"the configuration in '{folder}' is not one of '{importer}': {type(error).__name__}: {error}"
        ) from None
    assemble(imported, str(folder)).save_run(out)


def assemble(imported: Imported, source: str) -> Memory:
    """Build the memory that was imported; `source` goes into messages.

    Raises:
        StorageError: a weight is missing, unknown or of another shape.
    """
    memory = Memory.from_config(imported.config)
    _load(memory, imported.weights, source)
    return memory


def export_run(format: str, run: str | Path, out: str | Path) -> None:
    """Write the memory of the run folder `run` as the folder `out`, in the format of another project.

    Args:
        format: name of an installed importer that can also save.
        run: the run folder.
        out: the folder to make; it must not exist yet.

    Raises:
        PluginError: no importer of that name is installed.
        ConfigError: it cannot save at all, or cannot save such a memory.
        StorageError: `out` exists, or cannot be written.
    """
    plugin = registry().importer(format)
    if plugin.save is None:
        raise ConfigError(f"'{format}' can only import: name an importer that can also export")
    if Path(out).exists():
        raise StorageError(f"'{out}' exists already: name another folder with --out")
    memory = Memory.from_config(run)
    exported = Exported(memory.config, memory.state_dict(), memory.writer.spec, memory.backbone)
    plugin.save(exported, Path(out))


@torch.no_grad()
def export_state(path: str | Path, out: str | Path) -> None:
    """Write the memory in the state file `path` as the folder `out`, an adapter for peft: a cartridge, or a LoRA.

    Raises:
        InputError: the file holds several memories.
        ConfigError: peft has no form for such a memory.
        StorageError: the file cannot be used, or `out` exists or cannot be written.
    """
    memory, state = _at_rest(path, out)
    backbone = memory.config.backbone
    base = str(backbone.path or backbone.type)
    peft_state.save(memory.reader.condition(state), memory.backbone, base, Path(out))


@torch.no_grad()
def embed_prompt(
    memory: Memory, state: MemoryState, prompt: str = "", raw: bool | None = None
) -> Tensor:
    """Return one memory and a prompt as vLLM's prompt embeddings (M + T, D), in the model's dtype.

    Args:
        memory: that reads the state.
        state: one row of kind "prefix".
        prompt: as `Memory.ask` takes it, and put behind the memory as there.
        raw: as in `Memory.ask`.

    Raises:
        InputError: the state has several rows.
        ConfigError: it is of another kind, or its model embeds tokens by more than a table.
    """
    if state.batch_size not in (None, 1):
        raise InputError(f"the state holds {state.batch_size} memories, and a prompt goes with one")
    ids = memory.prompt(state, prompt, raw).ids[0].to(memory.backbone.info.device)
    return prompt_embeds.embedded(memory.reader.condition(state), memory.backbone, ids)


def export_prompt(
    path: str | Path, out: str | Path, prompt: str = "", raw: bool | None = None
) -> None:
    """Write the memory in the state file `path` and a prompt as the folder `out`, prompt embeddings for vLLM in two forms.

    Raises:
        InputError: the file holds several memories.
        ConfigError: prompt embeddings cannot say what such a memory does.
        StorageError: the file cannot be used, or `out` exists or cannot be written.
    """
    memory, state = _at_rest(path, out)
    prompt_embeds.save(embed_prompt(memory, state, prompt, raw), Path(out))


def _at_rest(path: str | Path, out: str | Path) -> tuple[Memory, MemoryState]:
    """Return the one memory in a state file, which is to become the folder `out` for a model without adapters."""
    if Path(out).exists():
        raise StorageError(f"'{out}' exists already: name another folder")
    memory, state = Memory.load(path)
    if state.batch_size not in (None, 1):
        raise InputError(f"'{path}' holds {state.batch_size} memories, and one can be exported")
    if memory.config.backbone.adapter is not None:
        raise ConfigError(
            "this memory's model has an adapter (backbone.adapter), and others would read the memory without it"
        )
    return memory, state


@torch.no_grad()
def import_state(folder: str | Path, out: str | Path, base: str | Path | None) -> None:
    """Make the state file `out` of an adapter of peft, a cartridge or a LoRA; its reader is the one for its kind.

    Args:
        folder: as peft saves it.
        out: the state file.
        base: the language model that the adapter is for.

    Raises:
        ConfigError: there is no `base`, or the adapter was made for another model or is of another type.
        StorageError: a file is missing or damaged, or names another model than `base`.
    """
    if base is None:
        raise ConfigError("an adapter needs its language model: name its folder with --base")
    described = BackboneConfig(path=str(base))
    backbone = load_backbone(described)
    state = peft_state.load(Path(folder), backbone)
    plugin = registry().reader_of(state.spec.kind)
    reader = plugin.build(plugin.config(), backbone, state.spec)
    config = Config(described, reader=PartConfig(plugin.name))
    memory = Memory(backbone, None, reader, config).eval()
    conditioning = memory.reader.condition(state)
    if conditioning.corrections:
        state = _as_read(
            state, peft_state.low_rank(conditioning.corrections, backbone.info.hidden_size)
        )
    memory.save(state, out)


def _as_read(state: MemoryState, read: Mapping[tuple[int, str], LowRank]) -> MemoryState:
    """Return low-rank weights divided by what the reader multiplies them by, so that it reads them as they are."""
    scales = {f"B.{name}": change.scale for (_, name), change in read.items()}
    tensors = {n: tensor / scales.get(n, 1.0) for n, tensor in state.tensors.items()}
    return replace(state, tensors=tensors)


def _load(memory: Memory, weights: Mapping[str, Tensor], source: str) -> None:
    # A language model from a folder has its weights already.
    loaded = memory.config.backbone.path is not None
    expected = {
        name: tensor
        for name, tensor in memory.state_dict().items()
        if not (loaded and name.startswith("model."))
    }
    for name, tensor in weights.items():
        if name not in expected:
            raise StorageError(
                f"'{source}' holds the weight '{name}', which this memory does not have"
            )
        if expected[name].shape != tensor.shape:
            raise StorageError(
                f"'{source}' holds '{name}' with the shape {tuple(tensor.shape)}, but this memory has "
                f"{tuple(expected[name].shape)}"
            )
    # Tied weights share their memory, and need to be given only once.
    given = {expected[name].data_ptr() for name in weights}
    for name, tensor in expected.items():
        if tensor.numel() and tensor.data_ptr() not in given:
            raise StorageError(f"'{source}' lacks the weight '{name}'")
    memory.load_state_dict(dict(weights), strict=False)
