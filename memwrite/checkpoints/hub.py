"""Run folders as repositories of the Hugging Face hub: with a model card out of their own record, fetched without code."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, snapshot_download

from memwrite.backbones.hub import is_hub_id
from memwrite.backbones.loading import MODEL_FOLDER
from memwrite.build import Components
from memwrite.checkpoints.run_folder import CONFIG_FILE, copy_run, save_run
from memwrite.config import Config, load_config, to_dict
from memwrite.errors import ConfigError
from memwrite.utils.atomic import saving, write_bytes

#: What a repository is called by, and found under.
LIBRARY, TAGS = "memwrite", ("memory", "context-compression")
README, EVALUATION, LOG = "README.md", "evaluation.json", "log.jsonl"
#: What a run folder may have beside the memory itself: how it was trained, and what it recalls.
_RECORD = (EVALUATION, LOG, "recipe.yaml")
_WANTED = ["*.json", "*.jsonl", "*.yaml", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md"]
_TITLES = {
    "memory": "memory",
    "unwritten": "a memory that has read nothing",
    "shuffled_state": "another context's state",
    "full_context": "the context in sight",
}


def save_repository(memory: Components, origin: Path | None, folder: Path) -> None:
    """Write a run folder with its record, and a `config.json` by which the hub counts downloads.

    Args:
        memory: what to save.
        origin: the run folder that it came from; its record is kept.
        folder: where.

    Raises:
        StorageError: the place cannot be written.
    """
    if origin is None:
        save_run(memory, folder)
    elif origin.resolve() != folder.resolve():
        copy_run(memory, origin, folder)
        with saving(folder):
            for name in _RECORD:
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, folder / name)
    config = load_config(folder / CONFIG_FILE)
    path = config.backbone.path
    if path is not None and Path(path).is_dir() and not (folder / MODEL_FOLDER).is_dir():
        warnings.warn(
            f"the language model is in the folder '{path}', which is no part of what is saved: others need it too, or name it by "
            f"its hub id in backbone.path",
            stacklevel=2,
        )
    write_bytes(folder / "config.json", json.dumps(to_dict(config), indent=1).encode())


def fetch(
    model_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    force_download: bool,
    local_files_only: bool,
    token: str | bool | None,
) -> Path:
    """Return the run folder of that name or path, downloaded if it is not here; arguments as for the hub's own models.

    Raises:
        ConfigError: there is none, or the hub cannot be reached.
    """
    if Path(model_id).is_dir():
        folder = Path(model_id)
    elif not is_hub_id(model_id):
        raise ConfigError(f"'{model_id}' is neither a run folder nor the name of a repository")
    else:
        try:
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=_WANTED,
                )
            )
        except Exception as error:  # of every kind, from name resolution to a full disk
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"'{model_id}' could not be loaded from the hub: {reason}") from None
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"'{model_id}' is no memory: it has no {CONFIG_FILE}. A language model is the backbone of a config"
        )
    return folder


def model_card(memory: Components, origin: Path | None, **data: Any) -> ModelCard:
    """Return the card of a memory: what it is, how to use it, what it recalls, how it was trained.

    Args:
        memory: to describe.
        origin: the run folder that it came from, for its record.
        data: further metadata, as in license="mit".
    """
    written = "" if origin is None else _text(origin / README).strip()
    if written.startswith("---\n"):  # a card already
        card = ModelCard(written + "\n")
        for name, value in data.items():
            setattr(card.data, name, value)
        return card
    config = memory.config if origin is None else load_config(origin / CONFIG_FILE)
    path = config.backbone.path
    base = path if path is not None and is_hub_id(path) and not Path(path).exists() else None
    metadata = ModelCardData(library_name=LIBRARY, tags=[*TAGS], base_model=base, **data)
    parts = [
        f"# {config.writer.name} + {config.reader.name}",
        f"A memory for {_model(config, memory)}: the writer `{config.writer.name}` writes a context into a state, the context is "
        f"thrown away, and the reader `{config.reader.name}` answers from the state alone.",
        "```python\nfrom memwrite import Memory\n\n"
        'memory = Memory.from_pretrained("...")  # this repository\n'
        'state = memory.write("a text").state\nprint(memory.ask(state, "a question"))\n```',
        *_recall(origin),
        *_training(config, origin),
    ]
    parts += ["## Notes", written] if written else []
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _model(config: Config, memory: Components) -> str:
    path = config.backbone.path
    if path is not None:
        return f"`{Path(path).name if Path(path).is_dir() else path}`"
    return (
        f"a {memory.backbone.info.architecture} model that was built from scratch and is part of it"
    )


def _recall(origin: Path | None) -> list[str]:
    found: Any = None
    with suppress(OSError, ValueError):
        found = None if origin is None else json.loads((origin / EVALUATION).read_bytes())
    if not isinstance(found, Mapping):
        return []
    rows = [
        f"| {title} | {scores['exact_match']:.1%} |"
        for name, title in _TITLES.items()
        if isinstance(scores := found.get(name), Mapping) and "exact_match" in scores
    ]
    size = [f"A state has {found['state_floats']:,} numbers."] if "state_floats" in found else []
    table = ["| read from | exact match |\n|---|---|\n" + "\n".join(rows)] if rows else []
    return ["## What it recalls", *size, *table] if size or table else []


def _training(config: Config, origin: Path | None) -> list[str]:
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    spent = _spent(_text(origin / LOG)) if origin is not None else ""
    return [f"## Configuration\n\n{spent}```yaml\n{text}```"]


def _spent(log: str) -> str:
    last: dict[str, Any] = {}
    for line in log.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            last |= entry if isinstance(entry, dict) else {}
    if not {"step", "seconds"} <= last.keys():
        return ""
    return f"Trained for {last['step']:,} steps in {last['seconds']:,.0f} seconds.\n\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
