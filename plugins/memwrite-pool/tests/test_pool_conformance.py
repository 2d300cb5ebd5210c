"""Writer and reader of the pool keep the laws."""

from __future__ import annotations

from memwrite_pool import WRITER
from memwrite_specs import conformance


@conformance(WRITER, reader="pool", params={"slots": 6, "tokens": 2})
def test_pool(law) -> None:
    law()


@conformance(
    WRITER, reader="pool", params={"slots": 5, "tokens": 2, "segment": 3, "per_layer": True}
)
def test_pool_in_segments(law) -> None:
    law()


@conformance(
    WRITER,
    reader="pool",
    params={"slots": 4, "tokens": 2, "segment": 2, "long": 3},
    reader_params={"retrieved": 2},
)
def test_pool_with_a_long_term_memory(law) -> None:
    law()
