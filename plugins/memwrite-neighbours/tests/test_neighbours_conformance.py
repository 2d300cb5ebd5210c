"""The writer and both readers keep the laws."""

from __future__ import annotations

from memwrite_neighbours import WRITER
from memwrite_specs import conformance


@conformance(WRITER, reader="extended-mind", reader_params={"nearest": 2})
def test_extended_mind(law) -> None:
    law()


@conformance(
    WRITER,
    reader="extended-mind",
    reader_params={"nearest": 3, "similarity": None, "special": True, "positions": "zero"},
)
def test_extended_mind_at_one_position(law) -> None:
    law()


@conformance(WRITER, reader="memorizing", reader_params={"nearest": 2, "local": True})
def test_memorizing(law) -> None:
    law()


@conformance(
    WRITER,
    reader="memorizing",
    params={"segment": 4, "overlap": 2},
    gaps={"chunk-exact": "the first segment of each write has nothing in front of it"},
)
def test_memorizing_in_segments(law) -> None:
    law()
