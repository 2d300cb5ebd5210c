"""Tests of the laws: each kills the mutants that are made for it, and spares the healthy."""

from __future__ import annotations

import pytest
from memwrite_specs import conformance
from memwrite_specs.laws import LAWS
from memwrite_specs.mutants import MUTANTS, Mutant
from memwrite_specs.reference import READERS, WRITERS
from memwrite_specs.runner import hold


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_each_mutant_is_killed_by_its_law_within_seconds(mutant: Mutant) -> None:
    result = hold(mutant.pair, LAWS[mutant.law])
    assert result.outcome == "broken"
    assert f"law '{mutant.law}'" in result.why
    assert result.seconds < 30


def test_each_law_has_a_mutant() -> None:
    assert {mutant.law for mutant in MUTANTS.values()} == LAWS.keys()


@conformance((WRITERS["prefix"], READERS["prefix"]))
def test_a_healthy_prefix(law) -> None:
    law()


@conformance((WRITERS["matrix"], READERS["matrix"]))
def test_a_healthy_matrix(law) -> None:
    law()


@conformance((WRITERS["keyvalue"], READERS["keyvalue"]))
def test_healthy_keys_and_values(law) -> None:
    law()


@conformance((WRITERS["lowrank"], READERS["lowrank"]))
def test_healthy_factors(law) -> None:
    law()


@conformance((WRITERS["empty"], READERS["empty"]))
def test_no_memory(law) -> None:
    law()
