"""Models of the Hugging Face hub: from its cache where they are in it, else downloaded after one quick question.

Only data is fetched: no code, and no weights that would have to be unpickled.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from memwrite.errors import ConfigError

_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]{,95}", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
#: Folders within a repository, and a second copy of the weights.
_UNWANTED = ["*/*", "consolidated*"]
#: Seconds that the hub may take to say whether it has a model.
_TIMEOUT = 5.0


def is_hub_id(path: str) -> bool:
    """Whether `path` could name a model of the hub."""
    return _ID.fullmatch(path) is not None and "--" not in path and ".." not in path


def cached(name: str) -> Path | None:
    """Return the folder of a model in the hub's cache; None where it is not there, or not all of it."""
    if not is_hub_id(name):
        return None
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
    return folder if _has_weights(folder) else None


def downloaded(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded if it is not in the cache.

    Raises:
        ConfigError: the hub has no such model, does not give it, or cannot be reached.
    """
    if (folder := cached(name)) is not None:
        return folder
    problem = f"backbone.path '{name}' is no folder in '{Path.cwd()}', and"
    try:
        HfApi().model_info(name, timeout=_TIMEOUT)
        folder = Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except GatedRepoError:
        raise ConfigError(
            f"{problem} the hub gives it only to those who have asked: accept its terms there, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(f"{problem} the hub has no model of that name") from None
    except Exception as error:  # of every kind, from name resolution to a full disk
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"{problem} it could not be loaded from the hub ({reason}): name the folder of a model that is here"
        ) from None
    if not _has_weights(folder):
        raise ConfigError(f"{problem} the hub's model of that name has no weights as safetensors")
    return folder


def _has_weights(folder: Path) -> bool:
    """Whether all weight files of a model are in its folder."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return all((folder / name).is_file() for name in set(index["weight_map"].values()))
    except FileNotFoundError:
        return any(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
