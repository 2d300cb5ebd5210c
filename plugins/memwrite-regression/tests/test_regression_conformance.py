"""The writers of regressions keep the laws."""

from __future__ import annotations

from memwrite_regression import MESA, RIDGE
from memwrite_specs import conformance

READING = {"projections": ["q", "k", "v", "o"], "init": "random"}


@conformance(RIDGE, reader="lora", reader_params=READING)
def test_ridge(law) -> None:
    law()


@conformance(RIDGE, reader="lora", params={"heads": 2, "rank": 5, "value_width": 3, "layers": [1]})
def test_ridge_of_two_heads_at_one_layer(law) -> None:
    law()


@conformance(MESA, reader="lora", reader_params=READING)
def test_mesa(law) -> None:
    law()


@conformance(
    MESA, reader="lora", params={"heads": 2, "rank": 4, "forgetting": False, "solver": "cg"}
)
def test_mesa_without_forgetting_by_conjugate_gradients(law) -> None:
    law()
