"""Packages made from the template that comes with this one, the package of the writer my-writer."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from memwrite.errors import InputError
from memwrite.plugins import registry

TEMPLATE = Path(__file__).parent / "template"
#: What another kind of package has in place of files of the template, by the kind's name.
VARIANTS = Path(__file__).parent / "variants"
LONGEST = 50
_WRITER = "memwrite_my_writer/writer.py"


@dataclass(frozen=True)
class Scaffold:
    """What a package is for, and what differs from the template there.

    Attributes:
        role: "writer", "reader" or "task"; also the name of its main module.
        kind: of a writer, the kind of its states; a name that memwrite does not know is a kind of its own.

    Raises:
        InputError: the kind's name cannot be one.
    """

    role: str = "writer"
    kind: str = "prefix"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.kind) or self.kind == "empty":
            raise InputError(
                f"'{self.kind}' cannot be a kind of state: give {', '.join(_SHARED)}, or a name of your own, lowercase "
                f"words joined by hyphens"
            )

        for _, owner in registry().kinds.entries.get(self.kind, []):
            raise InputError(
                f"the kind of state '{self.kind}' is that of {owner}: choose another name"
            )

    @property
    def variant(self) -> str | None:
        """Return the folder of `VARIANTS` with its files; None for the template as it is."""
        if self.role != "writer":
            return self.role
        if self.kind == "prefix":
            return None
        return self.kind if self.kind in _SHARED else "own-kind"

    def sources(self) -> dict[str, Path]:
        """Return the files that the package is made of: path within the template -> file."""
        files = _files(TEMPLATE)
        if self.role != "writer":
            del files[_WRITER]
        return files | ({} if self.variant is None else _files(VARIANTS / self.variant))


_NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SHARED = ("prefix", "keyvalue", "matrix", "lowrank")


def rendered(name: str, scaffold: Scaffold | None = None) -> dict[str, str]:
    """Return the files of the package `name`, by default one with a writer of prefixes: path -> text."""
    scaffold = scaffold or Scaffold()
    words = _spellings(name, scaffold)
    originals = re.compile("|".join(words))

    def put(text: str) -> str:
        return originals.sub(lambda match: words[match[0]], text)

    return {
        put(path): put(file.read_text(encoding="utf-8"))
        for path, file in sorted(scaffold.sources().items())
    }


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not _ignored(path.relative_to(folder))
    }


def _spellings(name: str, scaffold: Scaffold) -> dict[str, str]:
    """Return how the template's names are spelled in distributions, modules and classes, with those in their place."""
    title = "".join(word.capitalize() for word in name.split("-"))
    stem = title.removesuffix(scaffold.role.capitalize()) or title
    return {
        "my-writer": name,
        "my_writer": name.replace("-", "_"),
        "MyWriter": f"{stem}Writer",
        "MyReader": f"{stem}Reader",
        "MyTask": f"{stem}Task",
        "MyConfig": f"{stem}Config",
        "my-kind": scaffold.kind,
    }


def _ignored(path: Path) -> bool:
    """Say whether the template's own .gitignore names it: what tools have left there is no part of it."""
    patterns = (TEMPLATE / ".gitignore").read_text(encoding="utf-8").split()
    return any(fnmatch(part, pattern.rstrip("/")) for part in path.parts for pattern in patterns)


def checked(name: str) -> str:
    """Return the plugin's name that `name` stands for, which may be that of its distribution.

    Raises:
        InputError: it cannot be a name, or is taken by something installed.
    """
    word = name.removeprefix("memwrite-")
    if not _NAME.fullmatch(word) or len(word) > LONGEST:
        raise InputError(
            f"'{name}' cannot be a name: give lowercase words joined by hyphens, as in my-writer, of up to {LONGEST} letters"
        )
    if keyword.iskeyword(word) or yaml.safe_load(word) != word:
        raise InputError(f"'{name}' cannot be a name: the word means something to Python or YAML")
    for table in registry().tables:
        for _, owner in table.entries.get(word, []):
            raise InputError(
                f"the name '{word}' is taken: it is that of the {table.role} of {owner}"
            )
    for distribution in importlib.metadata.distributions(name=f"memwrite-{word}"):
        raise InputError(
            f"the name '{word}' is taken: memwrite-{word} {distribution.version} is installed"
        )
    return word


def make(name: str, folder: Path, scaffold: Scaffold | None = None) -> None:
    """Write the package `name`, by default one with a writer of prefixes, whole or not at all.

    Raises:
        InputError: the folder is there already, or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"'{folder}' is there already: give another folder with --out")
    files = rendered(name, scaffold)
    try:
        with tempfile.TemporaryDirectory(prefix=".memwrite-", dir=folder.parent) as place:
            whole = Path(place) / folder.name
            for path, text in files.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text, encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be made: {error.strerror}") from None
