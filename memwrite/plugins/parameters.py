"""The parameters of a plugin, as its configuration's dataclass and docstring tell them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

import yaml

_ENTRY = re.compile(r"(\w+): (.*)")


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: as in a config.
        type: as annotated.
        default: as YAML would have it; None where a value must be given.
        meaning: what the docstring says of it; "" for nothing.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def description(config: type[Any]) -> str:
    """Return what the docstring says before its sections."""
    paragraphs = inspect.cleandoc(config.__doc__ or "").split("\n\n")
    return "\n\n".join(p for p in paragraphs if not re.match(r"[A-Z]\w+:\n", p))


def parameters(config: type[Any]) -> list[Parameter]:
    """Return the parameters of a configuration, a dataclass, in their order."""
    meanings: dict[str, str] = {}
    for base in reversed(config.__mro__):
        meanings |= _meanings(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return [
        Parameter(field.name, str(field.type), _default(field), meanings.get(field.name, ""))
        for field in dataclasses.fields(config)
    ]


def _meanings(text: str) -> dict[str, str]:
    """Return what a docstring says of each of its `Attributes`."""
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    entries = re.split(r"\n    (?=\S)", "\n" + section[1]) if section else []
    found = (_ENTRY.match(" ".join(entry.split())) for entry in entries)
    return {match[1]: match[2] for match in found if match}


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
