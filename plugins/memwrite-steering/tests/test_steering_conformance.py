"""The writers and the reader keep the laws."""

from __future__ import annotations

from memwrite_specs import conformance
from memwrite_steering import WRITERS


@conformance(WRITERS[0], reader="steering", reader_params={"layers": [0, 1]})
def test_residual(law) -> None:
    law()


@conformance(WRITERS[0], reader="steering", reader_params={"strength": -2.0, "probed": True})
def test_mode(law) -> None:
    law()


@conformance(WRITERS[1], reader="key-value")
def test_cache(law) -> None:
    law()
