"""YAML and overrides as dataclasses, by OmegaConf: untrusted data that may not read the environment or call a function."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from memwrite.errors import ConfigError, did_you_mean

T = TypeVar("T")

MAX_DEPTH = 50
#: The one variable that a configuration may read, with its default: the folder of data sets.
_DATA_FOLDER = re.compile(r"\$\{oc\.env:MEMWRITE_DATA(,[^${}:]*)?\}")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        _check_depth(text)
        data = _plain(OmegaConf.load(io.StringIO(text)))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at '{path}'") from None
    except Exception as error:
        raise ConfigError(f"'{path}' cannot be read as YAML: {_reason(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' should hold a mapping such as 'writer: {{name: gradient}}'")
    return data


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides of the form `key.path=value` as nested plain data.

    Raises:
        ConfigError: an override has another form, or its value is not YAML.
    """
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override '{override}' is not of the form key.path=value")
    try:
        for override in overrides:
            _check_depth(override.partition("=")[2])
        changes: dict[str, Any] = _plain(OmegaConf.from_dotlist(list(overrides)))
    except Exception as error:  # the parsers below OmegaConf raise errors of many kinds
        raise ConfigError(f"an override cannot be read: {_reason(error)}") from None
    return changes


def merge(kind: type[T], layers: Sequence[Any], prefix: str) -> T:
    """Return a dataclass of type `kind` from plain data, later layers over earlier ones.

    Args:
        kind: the dataclass.
        layers: mappings of plain data, which are untrusted.
        prefix: put before the keys in messages, for instance "writer.params.".

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    for layer in layers:
        _check_data_only(layer, prefix.removesuffix("."))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), *layers)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} is required and not given")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        names = [f.name for f in dataclasses.fields(cast(Any, error.object_type or kind))]
        where, name = error.full_key or "?", str(error.key)
        raise ConfigError(f"unknown key {prefix}{where} ({did_you_mean(name, names)})") from None
    except OmegaConfBaseException as error:
        where = f"{prefix}{error.full_key}: " if error.full_key else prefix
        raise ConfigError(f"{where}{_reason(error)}") from None
    except Exception as error:  # a plugin's own checks, or a parser below OmegaConf
        raise ConfigError(f"{prefix}{_reason(error)}") from None


def _check_depth(text: str) -> None:
    """Refuse text nested too deep: the parser below OmegaConf recurses, and ends the process when its stack is full."""
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _plain(data: Any) -> Any:
    return OmegaConf.to_container(data, resolve=False)


def _check_data_only(value: Any, where: str) -> None:
    """Refuse what would call a resolver of OmegaConf: a stranger's file must not read the environment.

    Only the variable that says where data sets are may be read. Values of the same configuration, as in ${seed}, may.

    Raises:
        ConfigError: a text within `value` calls one.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_data_only(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_data_only(inner, f"{where}[{index}]")
    elif isinstance(value, str):
        rest = _DATA_FOLDER.sub("", value)
        if "${" in rest and ":" in rest[rest.index("${") :]:
            raise ConfigError(
                f"{where} = {value!r} would read the environment or call a function, which a configuration may not: "
                f'write the value itself, or set it on the command line as in {where.partition("[")[0]}="$NAME"'
            )


def _reason(error: Exception) -> str:
    """Return the message of `error` without the details that OmegaConf appends."""
    return str(error).split("\n    full_key")[0] or type(error).__name__
