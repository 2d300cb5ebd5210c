"""The readers keep the laws, beside the kit's own writers."""

from __future__ import annotations

from memwrite_lora import LORA, PER_EXAMPLE_LORA, STATIC_LORA
from memwrite_specs import conformance


@conformance(LORA, reader_params={"projections": ["q", "k", "v", "o"], "o_norm": True})
def test_the_lora_reader(law) -> None:
    law()


@conformance(PER_EXAMPLE_LORA)
def test_the_per_example_reader(law) -> None:
    law()


@conformance(STATIC_LORA)
def test_the_static_control(law) -> None:
    law()
