"""Convert released checkpoints into run folders, and run folders into the formats of other projects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.errors import ConfigError, StorageError
from memwrite.memory import Memory
from memwrite.plugins import Exported, Imported, registry


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
