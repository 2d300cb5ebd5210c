"""The writers keep the laws."""

from __future__ import annotations

from memwrite_forward import FORWARD, MEMFORMER, MEMORY_PROMPT
from memwrite_specs import conformance


@conformance(FORWARD, reader="prefix")
def test_the_forward_writer(law) -> None:
    law()


@conformance(FORWARD, reader="prefix", params={"gate": 0.3, "segment": 4})
def test_the_forward_writer_that_adds(law) -> None:
    law()


@conformance(
    MEMORY_PROMPT,
    reader="prefix",
    params={"slots": 2, "segment": 4, "hidden": 8, "output": 8, "init_gain": 1.0},
)
def test_memory_prompt(law) -> None:
    law()


@conformance(MEMFORMER, reader="prefix", params={"slots": 2, "segment": 4, "heads": 2})
def test_memformer(law) -> None:
    law()
