"""The points of a sweep: every combination of the values that overrides list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from memwrite.checkpoints.run_folder import CONFIG_FILE
from memwrite.config import Config, load_config, to_dict
from memwrite.errors import ConfigError
from memwrite.plugins import registry
from memwrite.plugins.pairs import reads_kind
from memwrite.utils.hashing import exact_digest_of

RUNS, SEED = "runs", "seed"
_OPENING, _CLOSING, _QUOTES = "[{", "]}", "\"'"


@dataclass(frozen=True)
class Point:
    """One combination.

    Attributes:
        name: of its files; no other combination has it.
        values: what was swept -> its value here, as it was given.
        config: the whole, its run folder set.
        run: the run folder that is evaluated as it is; None where `config` is to be trained, if it learns.
        overrides: of that run.
    """

    name: str
    values: Mapping[str, str]
    config: Config
    run: Path | None
    overrides: tuple[str, ...]

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """What it has in common with the points that differ in the seed alone."""
        return tuple((key, value) for key, value in self.values.items() if key != SEED)


def plan(source: str | Path, words: Sequence[str], folder: Path) -> list[Point]:
    """List the points, the values of the last word changing fastest.

    Args:
        source: a YAML file or a run folder.
        words: overrides; several values have commas between them. Commas within brackets or quotes are part of a value.
        folder: of the sweep, for the runs.

    Raises:
        ConfigError: a word is no override, a key comes twice, or a combination is no valid config.
    """
    keys: dict[str, list[str]] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key in keys:
            what = "is given twice" if sign else "is not of the form key.path=value"
            raise ConfigError(f"override '{word}' {what}")
        keys[key] = alternatives(value)
        if not all(keys[key]) or len(set(keys[key])) < len(keys[key]):
            raise ConfigError(f"override '{word}' has an empty value, or one that comes twice")
    swept = [key for key, values in keys.items() if len(values) > 1]
    run = Path(source) if Path(source).is_dir() else None
    points = []
    for chosen in product(*keys.values()):
        values = dict(zip(keys, chosen, strict=True))
        overrides = tuple(f"{key}={value}" for key, value in values.items())
        config = _with_reader(load_config(_file(source), overrides), "reader.name" in keys)
        if config.task is None:
            raise ConfigError(f"'{source}' has no task to compare on: add task: {{name: ...}}")
        shown = {key: values[key] for key in swept}
        name = _name(shown, config, run)
        training = replace(config.training, out=str(folder / RUNS / name))
        points.append(Point(name, shown, replace(config, training=training), run, overrides))
    return points


def alternatives(value: str) -> list[str]:
    """Cut a value at its commas, but not within brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def short(key: str) -> str:
    """Return the last word of a key; of `writer.name` the first, which tells more."""
    parent, _, last = key.rpartition(".")
    return parent if last == "name" else last


def _file(source: str | Path) -> Path:
    path = Path(source)
    return path / CONFIG_FILE if path.is_dir() else path


def _with_reader(config: Config, named: bool) -> Config:
    """Give a writer the first reader that reads its states, where the config's own does not and no other is named."""
    plugins = registry()
    writer = plugins.writer(config.writer.name)
    if named or reads_kind(plugins.reader(config.reader.name).accepts, writer.emits):
        return config
    reader = replace(config.reader, name=plugins.reader_for(writer.name).name, params={})
    return replace(config, reader=reader)


def _name(values: Mapping[str, str], config: Config, run: Path | None) -> str:
    """Return what was swept in a few characters, and a digest of everything that a result depends on."""
    said = ",".join(f"{short(key)}={value}" for key, value in values.items())
    described = to_dict(config)
    del described["training"]["out"]
    text = json.dumps([described, None if run is None else str(run.resolve())], sort_keys=True)
    readable = re.sub(r"[^\w.=,-]", "_", said).lstrip(".-")[:80]
    return f"{readable}-{exact_digest_of(text)[:8]}".lstrip("-")
