"""The writers and readers of low-rank weights keep the laws."""

from __future__ import annotations

from memwrite_hyperlora import GENERATIVE_ADAPTER
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
