"""Every other pair of installed plugins keeps the laws that concern the pair.

A plugin's own tests hold each of its writers, and each of its readers, to all laws with one partner.
"""

from __future__ import annotations

import pytest
from memwrite_specs import LAWS, PAIR_LAWS
from memwrite_specs.pytest_binding import bind, pair_of
from memwrite_specs.reference import WRITERS

from memwrite.errors import ConfigError
from memwrite.plugins import registry
from memwrite.plugins.pairs import reads_kind

INSTALLED = registry().pairs()
PAIRS = [
    *((w, r) for i, (w, r) in enumerate(INSTALLED) if any(w is v for v, _ in INSTALLED[:i])),
    # The kit's own writers beside each installed reader that is not theirs.
    *(
        (writer, reader)
        for kind, writer in WRITERS.items()
        for reader in registry().readers.all()
        if reads_kind(reader.accepts, kind) and writer not in registry().writers.all()
    ),
]
BOUND = [law for pair in PAIRS for law in bind(pair_of(pair), only=PAIR_LAWS)]


@pytest.mark.parametrize("law", BOUND, ids=[f"{b.pair}-{b.law.name}" for b in BOUND])
def test_the_laws(law) -> None:
    law()


def test_the_laws_of_a_pair_read_what_was_written() -> None:
    assert {"contract", "round-trip", "generation", "queries-apart"} <= PAIR_LAWS < LAWS.keys()
    assert all(LAWS[name].pairing for name in PAIR_LAWS)


def test_only_some_laws_are_bound() -> None:
    pair = pair_of(PAIRS[0])
    assert [b.law.name for b in bind(pair, only=["finite", "purity"])] == ["finite", "purity"]
    with pytest.raises(ConfigError, match="no law is called 'finit'"):
        bind(pair, only=["finit"])
