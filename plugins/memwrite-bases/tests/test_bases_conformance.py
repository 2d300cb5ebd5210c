"""The writers keep the laws."""

from __future__ import annotations

from memwrite_bases import HIPPO, LAVO
from memwrite_specs import conformance


@conformance(
    HIPPO,
    reader="lora",
    params={"order": 4, "value_width": 3},
    reader_params={"init": "random"},
)
def test_hippo(law) -> None:
    law()


@conformance(LAVO, reader="key-value", params={"slots": 2})
def test_lavo(law) -> None:
    law()
