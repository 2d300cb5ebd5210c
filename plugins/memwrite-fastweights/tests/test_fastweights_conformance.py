"""The writers of fast weights keep the laws, the online ones with reads in force while they write."""

from __future__ import annotations

from memwrite_fastweights import LACT, LATTICE, TITANS, TTT_E2E, TTT_MLP
from memwrite_specs import conformance

READING = {"projections": ["q", "k", "v", "o"], "init": "random"}
SHORT = {"chunk": 3, "heads": 2}  # several chunks in every context


@conformance(TITANS, reader="lora", params=SHORT, reader_params=READING)
def test_titans(law) -> None:
    law()


@conformance(TTT_MLP, reader="lora", params=SHORT, reader_params=READING)
def test_ttt_mlp(law) -> None:
    law()


@conformance(LACT, reader="lora", params=SHORT, reader_params=READING)
def test_lact(law) -> None:
    law()


@conformance(LATTICE, reader="lora", params=SHORT, reader_params=READING)
def test_lattice(law) -> None:
    law()


@conformance(TTT_E2E, reader="per-example-lora", params={"chunk": 3})
def test_ttt_e2e(law) -> None:
    law()
