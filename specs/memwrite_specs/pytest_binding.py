"""Laws bound to pairs; three lines make every law a test of pytest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memwrite.errors import IncompatiblePair, PluginNotFound, did_you_mean
from memwrite.plugins import ReaderPlugin, WriterPlugin, registry
from memwrite.plugins.registry import reads_kind
from memwrite_specs.law import Law
from memwrite_specs.laws import LAWS
from memwrite_specs.pair import Pair
from memwrite_specs.reference import READERS, WRITERS
from memwrite_specs.runner import Result, hold

Subject = WriterPlugin | ReaderPlugin | tuple[WriterPlugin, ReaderPlugin] | Pair


@dataclass
class BoundLaw:
    """A law and the pair that is held to it; calling it does so.

    Attributes:
        pair: a writer and a reader.
        law: one of `LAWS`.
        gap: why it is known to be broken; None if it must hold.
        result: of the latest call.
    """

    pair: Pair
    law: Law
    gap: str | None = None
    result: Result | None = field(default=None, init=False)

    def __call__(self) -> None:
        """In a test of pytest: passes, skips where the law does not bind, or fails with a report."""
        import pytest

        __tracebackhide__ = True
        seed = int(os.environ.get("MEMWRITE_SPECS_SEED", "0"))
        self.result = hold(self.pair, self.law, self.gap, start=seed, repeat=self._repeat(seed))
        outcome, why = self.result.outcome, self.result.why
        if outcome == "n/a":
            pytest.skip(why)
        if outcome == "gap":
            pytest.xfail(why)
        if outcome == "broken":
            pytest.fail(why, pytrace=False)

    def _repeat(self, seed: int) -> str:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0]
        return f"MEMWRITE_SPECS_SEED={seed} pytest '{test}'" if test else ""


def conformance(
    subject: Subject,
    reader: str | ReaderPlugin | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    reader_params: Mapping[str, Any] | None = None,
    backbone: str = "tiny",
    gaps: Mapping[str, str] | None = None,
) -> Any:
    """Hold a plugin to every law, each a test of its own of the function that is decorated:

        @conformance(MY_WRITER, reader="prefix")
        def test_my_writer(law): law()

    Args:
        subject: a writer, a reader (which then gets the kit's trivial writer), or both.
        reader: a plugin, or the name of an installed one; by default the kit's trivial reader of the writer's kind.
        params: of the writer, as in a config.
        reader_params: of the reader.
        backbone: a name of `memwrite_specs.backbones.BACKBONES`.
        gaps: law -> why it is known to be broken, beside those that the plugins declare. A gap that has closed fails.

    Raises:
        ValueError: a gap names no law, or gives no reason.
        IncompatiblePair: the reader does not accept what the writer emits, or its kind of state is unknown to the kit.
        PluginNotFound: no reader of that name is installed.
    """
    import pytest

    pair = pair_of(subject, reader, params=params, reader_params=reader_params, backbone=backbone)
    bound = bind(pair, gaps)
    return pytest.mark.parametrize("law", bound, ids=[b.law.name for b in bound])


def pair_of(
    subject: Subject,
    reader: str | ReaderPlugin | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    reader_params: Mapping[str, Any] | None = None,
    backbone: str = "tiny",
) -> Pair:
    """The pair that `conformance` holds to the laws; arguments and errors as there."""
    if isinstance(subject, Pair):
        return subject
    if isinstance(subject, ReaderPlugin):
        subject = (_writer_for(subject), subject)
    if isinstance(subject, tuple):
        writer, chosen = subject
    elif isinstance(reader, str):
        writer, chosen = subject, registry().reader(reader)
    else:
        writer, chosen = subject, reader or _reader_for(subject)
    return Pair(writer, chosen, params or {}, reader_params or {}, backbone)


def bind(pair: Pair, gaps: Mapping[str, str] | None = None) -> list[BoundLaw]:
    """Every law bound to the pair, with the gaps of its plugins and those given; errors as `conformance`."""
    known = {**pair.writer.gaps, **pair.reader.gaps, **(gaps or {})}
    for name, reason in known.items():
        if name not in LAWS:
            raise ValueError(f"the gap '{name}' names no law ({did_you_mean(name, LAWS)})")
        if not reason.strip():
            raise ValueError(f"the gap '{name}' needs a reason")
    return [BoundLaw(pair, law, known.get(name)) for name, law in LAWS.items()]


def _writer_for(reader: ReaderPlugin) -> WriterPlugin:
    for kind, writer in WRITERS.items():
        if reads_kind(reader.accepts, kind):
            return writer
    raise IncompatiblePair(
        f"reader '{reader.name}' reads {' or '.join(sorted(reader.accepts))} states, of which the kit has no writer: "
        f"give a pair (writer, reader)"
    )


def _reader_for(writer: WriterPlugin) -> ReaderPlugin:
    if writer.emits in READERS:
        return READERS[writer.emits]
    for other, found in registry().pairs():
        if other.emits == writer.emits:
            return found
    raise PluginNotFound(
        f"writer '{writer.name}' emits '{writer.emits}' states, of which the kit has no reader: give one with reader="
    )
