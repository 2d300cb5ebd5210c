"""The writers and readers of low-rank weights keep the laws."""

from __future__ import annotations

from memwrite_hyperlora import DOC_TO_LORA, GENERATIVE_ADAPTER
from memwrite_specs import conformance

MOST = ["q", "k", "v", "o", "up", "down"]


@conformance(
    GENERATIVE_ADAPTER, reader="generative-adapter", params={"rank": 4, "key_width": 6, "window": 4}
)
def test_generative_adapter(law) -> None:
    law()


@conformance(
    GENERATIVE_ADAPTER,
    reader="generative-adapter",
    params={"rank": 3, "heads": 6, "layers": [1]},
    reader_params={"projections": MOST, "norm": "svd", "svd_rank": 2},
)
def test_generative_adapter_of_six_projections_by_svd(law) -> None:
    law()


SMALL = {
    "rank": 2, "width": 6, "latents": 3, "blocks": 2, "heads": 2, "kv_heads": 1, "head_width": 4, "chunks": 32,
}  # fmt: skip


@conformance(DOC_TO_LORA, reader="per-example-lora", params={**SMALL, "chunk": 4})
def test_doc_to_lora(law) -> None:
    law()


@conformance(
    DOC_TO_LORA, reader="per-example-lora", params={**SMALL, "projections": MOST, "kv_heads": 2}
)
def test_doc_to_lora_of_six_projections(law) -> None:
    law()
