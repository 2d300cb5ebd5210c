"""The compressors keep the laws."""

from __future__ import annotations

from memwrite_compress import GIST
from memwrite_specs import conformance


@conformance(GIST, reader="key-value", params={"slots": 3, "init_std": 0.5})
def test_gist(law) -> None:
    law()


@conformance(
    GIST, reader="key-value", params={"slots": 2, "segment": 4, "rank": 2, "init_std": 0.5}
)
def test_gist_in_segments(law) -> None:
    law()
