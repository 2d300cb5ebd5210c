"""Small random models of every family that the core supports; their windows are short enough to matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memwrite_specs.testing import FAMILIES as FAMILIES
from memwrite_specs.testing import NEWER_FAMILIES
from memwrite_specs.testing import WINDOW as WINDOW
from memwrite_specs.testing.families import add as add
from memwrite_specs.testing.families import architecture as architecture
from memwrite_specs.testing.families import built as built
from memwrite_specs.testing.families import model
from memwrite_specs.testing.families import weight as weight
from support import reader_only, without_params

from memwrite import Memory
from memwrite.config import BackboneConfig
from memwrite.plugins.builtin.readers import PrefixReader

EVERY = {**FAMILIES, **NEWER_FAMILIES}


def saved(folder: Path, family: str, attention: str, **params: Any) -> tuple[Memory, Memory]:
    """A prefix memory from scratch, and one whose backbone went through a folder."""
    scratch = BackboneConfig(**model(family, attention, **params))
    first = reader_only(without_params(PrefixReader), scratch)
    first.model.save_pretrained(folder)
    loaded = BackboneConfig(path=str(folder), dtype="float64", attention=attention)
    return first, reader_only(without_params(PrefixReader), loaded)
