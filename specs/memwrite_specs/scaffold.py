"""A package of one's own from the template that comes with this one, which is called my-writer."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import yaml

from memwrite.errors import InputError
from memwrite.plugins import registry

TEMPLATE = Path(__file__).parent / "template"
LONGEST = 50


def rendered(name: str) -> dict[str, str]:
    """The files of a package for the writer `name`: path -> text."""
    words = _spellings(name)
    originals = re.compile("|".join(words))

    def put(text: str) -> str:
        return originals.sub(lambda found: words[found[0]], text)

    paths = [path for path in sorted(TEMPLATE.rglob("*")) if path.is_file() and not _left(path)]
    return {
        put(path.relative_to(TEMPLATE).as_posix()): put(path.read_text(encoding="utf-8"))
        for path in paths
    }


def _spellings(name: str) -> dict[str, str]:
    """How the template's name is spelled in distributions, modules and classes, and this one instead."""
    title = "".join(word.capitalize() for word in name.split("-"))
    stem = title.removesuffix("Writer") or title
    return {
        "my-writer": name,
        "my_writer": name.replace("-", "_"),
        "MyWriter": f"{stem}Writer",
        "MyConfig": f"{stem}Config",
    }


def _left(path: Path) -> bool:
    """Whether the template's own .gitignore names it: what tools have left there is no part of it."""
    patterns = (TEMPLATE / ".gitignore").read_text(encoding="utf-8").split()
    parts = path.relative_to(TEMPLATE).parts
    return any(fnmatch(part, pattern.rstrip("/")) for part in parts for pattern in patterns)


def checked(name: str) -> str:
    """The writer's name that `name` stands for, which may be that of its distribution.

    Raises:
        InputError: it cannot be a name, or is taken by something installed.
    """
    word = name.removeprefix("memwrite-")
    if not re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", word) or len(word) > LONGEST:
        raise InputError(
            f"'{name}' cannot be a name: give lowercase words joined by hyphens, as in my-writer, of up to {LONGEST} letters"
        )
    if keyword.iskeyword(word) or yaml.safe_load(word) != word:
        raise InputError(f"'{name}' cannot be a name: the word means something to Python or YAML")
    found = registry()
    for shelf in found.tables:
        for _, owner in shelf.entries.get(word, []):
            raise InputError(
                f"the name '{word}' is taken: it is that of the {shelf.role} of {owner}"
            )
    for distribution in importlib.metadata.distributions(name=f"memwrite-{word}"):
        raise InputError(
            f"the name '{word}' is taken: memwrite-{word} {distribution.version} is installed"
        )
    return word


def make(name: str, folder: Path) -> None:
    """Write the package for the writer `name`, whole or not at all.

    Raises:
        InputError: the folder is there already, or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"'{folder}' is there already: give another folder with --out")
    files = rendered(name)
    try:
        with tempfile.TemporaryDirectory(prefix=".memwrite-", dir=folder.parent) as place:
            whole = Path(place) / folder.name
            for path, text in files.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text, encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be made: {error.strerror}") from None
