"""The writers of fast weights keep the laws, with reads in force while they write."""

from __future__ import annotations

from memwrite_fastweights import TITANS, TITANS_MLP
from memwrite_specs import conformance

READING = {"projections": ["q", "k", "v", "o"], "init": "random"}
SHORT = {"chunk": 3, "heads": 2}  # several chunks in every context


@conformance(TITANS, reader="lora")
def test_titans(law) -> None:
    law()


@conformance(TITANS, reader="lora", params=SHORT, reader_params=READING)
def test_titans_of_short_chunks(law) -> None:
    law()


@conformance(TITANS_MLP, reader="lora", params=SHORT, reader_params=READING)
def test_titans_of_two_matrices(law) -> None:
    law()
