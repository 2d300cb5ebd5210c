"""The writers of matrices keep the laws, with reads in force while they write."""

from __future__ import annotations

from memwrite_delta import DELTA, GATED_DELTA, HEBBIAN
from memwrite_specs import conformance

READING = {"projections": ["q", "k", "v", "o"], "init": "random"}


@conformance(DELTA, reader="lora", reader_params=READING)
def test_the_delta_writer(law) -> None:
    law()


@conformance(
    DELTA,
    reader="lora",
    params={"granularity": "message", "heads": 2, "writes": 2, "forgetting": "free"},
    reader_params=READING,
)
def test_the_delta_writer_of_messages(law) -> None:
    law()


@conformance(HEBBIAN, reader="lora")
def test_the_hebbian_writer(law) -> None:
    law()


@conformance(GATED_DELTA, reader="lora")
def test_the_gated_delta_writer(law) -> None:
    law()
