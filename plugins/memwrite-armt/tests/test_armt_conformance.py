"""ARMT's writer and reader keep the laws."""

from __future__ import annotations

from memwrite_armt import WRITER
from memwrite_specs import conformance

SMALL = {"rank": 4, "order": 2}


@conformance(WRITER, reader="associative", params={**SMALL, "slots": 3}, reader_params=SMALL)
def test_associative(law) -> None:
    law()


@conformance(
    WRITER,
    reader="associative",
    params={**SMALL, "slots": 2, "segment": 4, "correction": False},
    reader_params=SMALL,
)
def test_associative_in_segments(law) -> None:
    law()
