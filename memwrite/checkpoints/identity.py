"""What a memory was written by and for: backbone, spec, writer and reader, by what they compute.

Neither the version of the library nor a path, a device, a dtype of computing or an attention implementation is a part
of it, and a parameter that is not given is one with the default value: a new option of a plugin changes no identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Hashable, Mapping
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
        """Whether the two compute the same, as far as the weights of both are known."""
        known = bool(self.weights and other.weights)
        return (self.name, self.params) == (other.name, other.params) and (
            not known or self.weights == other.weights
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
        reader = PartIdentity(
            header.reader.name, reader_params(header.reader), digest_of(reader_weights)
        )
        writer = writer_identity(header.writer, header.writer_fingerprint)
        return cls(header.fingerprint, header.spec, writer, reader)

    @property
    def digest(self) -> str:
        """64 hex digits that name this identity."""
        text = json.dumps(to_dict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def same(self, other: Identity, backbone: TransformersBackbone) -> bool:
        """Whether the two stand for the same.

        Args:
            other: may be of an older file, with a fingerprint of an older scheme.
            backbone: the one that this identity names.
        """
        return (
            self.spec == other.spec
            and self.writer.same(other.writer)
            and self.reader.same(other.reader)
            and backbone.has_fingerprint(other.backbone)
        )


def writer_identity(part: PartConfig, weights: str) -> PartIdentity:
    """Return the identity of a writer with weights of this digest; "" where it has none or they are not known."""
    return PartIdentity(part.name, writer_params(part), weights)


def writer_params(part: PartConfig) -> Mapping[str, Any]:
    """Return those parameters of a writer that differ from their defaults; all of them if it is not installed."""
    try:
        return _changed(registry().writer(part.name).config, part.params)
    except PluginError:
        return part.params


def reader_params(part: PartConfig) -> Mapping[str, Any]:
    """Return those parameters of a reader that differ from their defaults; all of them if it is not installed."""
    try:
        return _changed(registry().reader(part.name).config, part.params)
    except PluginError:
        return part.params


def _changed(kind: type[Any], params: Mapping[str, Any]) -> Mapping[str, Any]:
    return _cached_changed(cast(Hashable, kind), json.dumps(params, sort_keys=True, default=str))


@lru_cache(256)
def _cached_changed(kind: Any, params: str) -> Mapping[str, Any]:
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
