"""The identity of a memory: the backbone, spec, writer and reader that it was written by and for.

Only what changes the result counts: not the version of the library, a path, a device, the dtype of computation or the
attention implementation. A parameter that is not given counts as its default, so a new option changes no identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from torch import Tensor

from memwrite.backbones.transformers import TransformersBackbone
from memwrite.checkpoints.formats import Header, StoredSpec
from memwrite.config import PartConfig, part_config, to_dict
from memwrite.errors import ConfigError, PluginError
from memwrite.plugins.registry import registry
from memwrite.utils.hashing import digest_of


@dataclass(frozen=True)
class PartIdentity:
    """A writer or a reader.

    Attributes:
        name: its name in the registry.
        params: those of its parameters that differ from their defaults.
        weights: a digest of its weights; "" where it has none, or where they are not known.
    """

    name: str
    params: Mapping[str, Any]
    weights: str

    def same(self, other: PartIdentity) -> bool:
        """Return whether both compute the same; weights are compared only where both are known."""
        comparable = bool(self.weights and other.weights)
        return (self.name, self.params) == (other.name, other.params) and (
            not comparable or self.weights == other.weights
        )


@dataclass(frozen=True)
class Identity:
    """What a memory was written by and for.

    Attributes:
        backbone: the backbone's fingerprint.
        spec: of the state.
        writer: what wrote it.
        reader: what it is read by.
    """

    backbone: str
    spec: StoredSpec
    writer: PartIdentity
    reader: PartIdentity

    @classmethod
    def of(cls, header: Header, reader_weights: Mapping[str, Tensor]) -> Identity:
        """Return the identity of a state file with this header and these weights of its reader."""
        reader = reader_identity(header.reader, digest_of(reader_weights))
        writer = writer_identity(header.writer, header.writer_fingerprint)
        return cls(header.fingerprint, header.spec, writer, reader)

    @property
    def digest(self) -> str:
        """Return the 64 hex digits that name this identity."""
        text = json.dumps(to_dict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def same(self, other: Identity, backbone: TransformersBackbone) -> bool:
        """Return whether both name the same backbone, writer and reader, and states that this writer writes.

        Args:
            other: of a state that has grown, where the writer's states grow; may come from an older file, with a fingerprint of an older scheme.
            backbone: the backbone that this identity names.
        """
        return (
            self.spec.restore().admits(other.spec.restore())
            and self.writer.same(other.writer)
            and self.reader.same(other.reader)
            and backbone.has_fingerprint(other.backbone)
        )


def writer_identity(part: PartConfig, weights: str) -> PartIdentity:
    """Return the identity of a writer whose weights have this digest; "" where it has none or they are not known."""
    return _identity(part, weights, lambda: registry().writer(part.name).config)


def reader_identity(part: PartConfig, weights: str) -> PartIdentity:
    """Return the identity of a reader whose weights have this digest; "" where it has none or they are not known."""
    return _identity(part, weights, lambda: registry().reader(part.name).config)


def _identity(part: PartConfig, weights: str, config: Callable[[], type[Any]]) -> PartIdentity:
    try:
        kind = cast(Hashable, config())
    except PluginError:  # not installed, so its defaults are not known
        return PartIdentity(part.name, part.params, weights)
    given = json.dumps(part.params, sort_keys=True, default=str)
    return PartIdentity(part.name, _changed(kind, given), weights)


@lru_cache(256)
def _changed(kind: Any, params: str) -> Mapping[str, Any]:
    """Return those of the parameters, given as JSON, that differ from their defaults in the dataclass `kind`."""
    given: dict[str, Any] = json.loads(params)
    try:
        complete = to_dict(part_config(kind, given, "params"))
    except ConfigError:  # of another version of the plugin
        return given
    changed = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            default = to_dict(default)
        if default is dataclasses.MISSING or complete[field.name] != default:
            changed[field.name] = complete[field.name]
    return changed
