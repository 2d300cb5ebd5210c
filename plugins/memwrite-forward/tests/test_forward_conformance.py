"""The forward writer keeps the laws."""

from __future__ import annotations

from memwrite_forward import FORWARD
from memwrite_specs import conformance


@conformance(FORWARD, reader="prefix")
def test_the_forward_writer(law) -> None:
    law()
