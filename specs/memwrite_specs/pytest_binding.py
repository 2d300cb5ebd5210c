"""Laws bound to pairs; three lines make every law a test of pytest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from memwrite.errors import ConfigError, IncompatiblePair, PluginNotFound, did_you_mean
from memwrite.plugins import ReaderPlugin, WriterPlugin, registry
from memwrite.plugins.pairs import reads_kind
from memwrite_specs.law import Law
from memwrite_specs.laws import CONTRACT, all_laws
from memwrite_specs.pair import Pair
from memwrite_specs.reference import READERS, WRITERS
from memwrite_specs.runner import Result, hold

#: Former names of laws, which gaps may still use.
RENAMED = {"sealed": "no-side-effects"}

Subject = WriterPlugin | ReaderPlugin | tuple[WriterPlugin, ReaderPlugin] | Pair


@dataclass
class BoundLaw:
    """A law and the pair that is held to it; calling it does so.

    Attributes:
        pair: a writer and a reader.
        law: one of the laws.
        gap: why it is known to be broken; None if it must hold.
        contract: the law `contract` of the same pair, without which this one is not tried; None for `contract` itself.
        result: the latest result.
        reported: whether a test of this process has failed because of it.
    """

    pair: Pair
    law: Law
    gap: str | None = None
    contract: BoundLaw | None = None
    result: Result | None = field(default=None, init=False)
    reported: bool = field(default=False, init=False)

    def hold(self, seed: int, repeat: str = "") -> Result:
        """Hold the pair to the law, unless it breaks `contract`, after which nothing else is worth trying.

        Args:
            seed: the seed of the cases.
            repeat: the command that does this again, for the report.
        """
        if self.contract is not None and self.contract.result is None:
            self.contract.hold(seed, repeat)
        if self.blocked:
            why = "the law 'contract' is broken"
            self.result = Result(str(self.pair), self.law.name, "not run", why)
            return self.result
        self.result = hold(self.pair, self.law, self.gap, start=seed, repeat=repeat)
        return self.result

    def __call__(self) -> None:
        """Do as a test of pytest does: pass, skip where the law does not bind, or fail with a report."""
        import pytest

        __tracebackhide__ = True
        seed = int(os.environ.get("MEMWRITE_SPECS_SEED", "0"))
        result = self.hold(seed, self._repeat(seed))
        if result.outcome == "n/a":
            pytest.skip(result.why)
        if result.outcome == "gap":
            pytest.xfail(result.why)
        if self.blocked:
            self._report_contract()
            pytest.skip(f"not run: {result.why}")
        if result.failed:
            self.reported = True
            pytest.fail(_failure(result), pytrace=False)

    @property
    def blocked(self) -> bool:
        """Say whether a broken `contract` keeps this law from being tried."""
        first = None if self.contract is None else self.contract.result
        return first is not None and first.outcome == "broken"

    def _report_contract(self) -> None:
        """Fail with the report of `contract`, unless a test of this process has done so."""
        import pytest

        __tracebackhide__ = True
        assert self.contract is not None
        assert self.contract.result is not None
        if not self.contract.reported:
            self.contract.reported = True
            pytest.fail(self.contract.result.why, pytrace=False)

    def _repeat(self, seed: int) -> str:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0]
        return f"MEMWRITE_SPECS_SEED={seed} pytest '{test}'" if test else ""


def _failure(result: Result) -> str:
    if result.outcome == "broken":
        return result.why
    return f"the law '{result.law}' was not run on {result.pair}: {result.why}"


def conformance(
    subject: Subject,
    reader: str | ReaderPlugin | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    reader_params: Mapping[str, Any] | None = None,
    backbone: str = "tiny",
    gaps: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> Any:
    """Hold a plugin to every law, each a test of its own of the function that is decorated:

        @conformance(MY_WRITER, reader="prefix")
        def test_my_writer(law): law()

    Args:
        subject: a writer, a reader (which then gets the kit's own writer), or both.
        reader: a plugin, or the name of an installed one; by default the kit's own reader of the writer's kind.
        params: parameters of the writer, as in a config.
        reader_params: parameters of the reader.
        backbone: a name of `memwrite_specs.backbones.BACKBONES`.
        gaps: law -> why it is known to be broken, beside those that the plugins declare. A gap that has closed fails.
        only: names of the laws to hold it to; by default all. `PAIR_LAWS` are enough for a further pair of a writer and
            a reader that have each kept all laws with another partner.

    Raises:
        ConfigError: `only` names no law, or a gap names no law, or one that finds leaks, or gives no reason.
        IncompatiblePair: the reader does not accept what the writer emits, or its kind of state is unknown to the kit.
        PluginNotFound: no reader of that name is installed.
    """
    import pytest

    pair = pair_of(subject, reader, params=params, reader_params=reader_params, backbone=backbone)
    bound = bind(pair, gaps, only)
    return pytest.mark.parametrize("law", bound, ids=[b.law.name for b in bound])


def pair_of(
    subject: Subject,
    reader: str | ReaderPlugin | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    reader_params: Mapping[str, Any] | None = None,
    backbone: str = "tiny",
) -> Pair:
    """Return the pair that `conformance` holds to the laws; arguments and errors as there."""
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


def bind(
    pair: Pair, gaps: Mapping[str, str] | None = None, only: Collection[str] | None = None
) -> list[BoundLaw]:
    """Bind laws to the pair, with the gaps of its plugins and those given; arguments and errors as in `conformance`."""
    laws = all_laws()
    for name in only or ():
        if name not in laws:
            raise ConfigError(f"no law is called '{name}' ({did_you_mean(name, laws)})")
    declared = {
        RENAMED.get(name, name): _reason(name, why, laws)
        for gaps_of in (pair.writer.gaps, pair.reader.gaps, gaps or {})
        for name, why in gaps_of.items()
    }
    contract = BoundLaw(pair, CONTRACT, declared.get(CONTRACT.name))
    others = (law for law in laws.values() if law is not CONTRACT)
    bound = [contract, *(BoundLaw(pair, law, declared.get(law.name), contract) for law in others)]
    return [law for law in bound if only is None or law.law.name in only]


def _reason(name: str, reason: str, laws: Mapping[str, Law]) -> str:
    """Return the reason of a gap that may be declared."""
    current = RENAMED.get(name, name)
    if current != name:
        warnings.warn(
            f"the law '{name}' is called '{current}' now: rename the gap", DeprecationWarning, 4
        )
    if current not in laws:
        raise ConfigError(f"the gap '{name}' names no law ({did_you_mean(name, laws)})")
    if laws[current].leakage:
        raise ConfigError(
            f"the gap '{name}' cannot be declared: what breaks this law lets the context get around the state, and "
            f"that is no memory"
        )
    if not reason.strip():
        raise ConfigError(f"the gap '{name}' needs a reason")
    return reason


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
