"""The gradient writer keeps the laws."""

from __future__ import annotations

from memwrite_gradient import GRADIENT
from memwrite_specs import conformance


@conformance(GRADIENT, reader="prefix")
def test_the_gradient_writer(law) -> None:
    law()


OPTIONS = {
    "steps": 2,
    "window": 4,
    "learned_lr": "each",
    "clip_norm": 1.0,
    "control_tokens": 1,
    "lora_rank": 2,
}


@conformance(
    GRADIENT, reader="prefix", params={**OPTIONS, "projection": "per-example", "write_head": True}
)
def test_the_gradient_writer_with_all_it_has(law) -> None:
    law()
