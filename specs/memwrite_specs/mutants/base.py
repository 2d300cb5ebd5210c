"""A mutant: a writer or reader that is broken on purpose in one way, and the law that must kill it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from memwrite.plugins import Capabilities, ReaderPlugin, WriterPlugin
from memwrite.plugins.builtin.readers import NoParams
from memwrite_specs.pair import Pair
from memwrite_specs.reference import READERS, WRITERS, ReferenceWriter, SlotsConfig

K = TypeVar("K", bound=type[nn.Module])


@dataclass(frozen=True)
class Mutant:
    """A mutant.

    Attributes:
        name: words joined by hyphens.
        law: that must kill it.
        fault: what is wrong with it, in words.
        pair: what is held to the laws.
    """

    name: str
    law: str
    fault: str
    pair: Pair


#: By name.
MUTANTS: dict[str, Mutant] = {}


def _named(part: type) -> tuple[str, str]:
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in part.__name__).strip("-")
    return words, " ".join(inspect.cleandoc(part.__doc__ or "").split())


def breaks(
    law: str,
    *claims: str,
    kind: str = "prefix",
    reader: type[nn.Module] | None = None,
) -> Callable[[K], K]:
    """Make a class a mutant writer of states of `kind`, which declares the capabilities `claims`."""

    def made(writer: K) -> K:
        name, fault = _named(writer)
        declared = _writer(name, fault, writer, kind, claims)
        reading = READERS.get(kind) if reader is None else _reader(name, reader, kind)
        assert reading is not None
        MUTANTS[name] = Mutant(name, law, fault, Pair(declared, reading))
        return writer

    return made


def reads_wrongly(
    law: str, kind: str = "prefix", writer: type[ReferenceWriter] | None = None
) -> Callable[[K], K]:
    """Make a class a mutant reader of states of `kind`, beside a writer, by default the kit's own."""

    def made(reader: K) -> K:
        name, fault = _named(reader)
        declared = WRITERS[kind]
        if writer is not None:
            declared = _writer(name, fault, writer, kind)
        MUTANTS[name] = Mutant(name, law, fault, Pair(declared, _reader(name, reader, kind)))
        return reader

    return made


def _writer(
    name: str, fault: str, build: Any, kind: str, claims: tuple[str, ...] = ()
) -> WriterPlugin:
    promised = Capabilities(**dict.fromkeys((c.replace("-", "_") for c in claims), True))
    return WriterPlugin(
        api=2, name=name, summary=fault, config=SlotsConfig, build=build, emits=kind,
        capabilities=promised,
    )  # fmt: skip


def _reader(name: str, build: Any, kind: str) -> ReaderPlugin:
    return ReaderPlugin(
        api=2, name=name, summary=name, config=NoParams, build=build, accepts=frozenset({kind})
    )
