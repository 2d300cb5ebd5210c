"""The key-value writers keep the laws."""

from __future__ import annotations

from memwrite_kv import WRITERS
from memwrite_specs import conformance

BY_NAME = {writer.name: writer for writer in WRITERS}


@conformance(BY_NAME["h2o"], reader="key-value", params={"slots": 4})
def test_h2o(law) -> None:
    law()


@conformance(BY_NAME["snapkv"], reader="key-value", params={"slots": 4, "window": 2, "pool": 3})
def test_snapkv(law) -> None:
    law()


@conformance(BY_NAME["keydiff"], reader="key-value", params={"slots": 4})
def test_keydiff(law) -> None:
    law()


@conformance(BY_NAME["knorm"], reader="key-value", params={"slots": 4})
def test_knorm(law) -> None:
    law()


@conformance(BY_NAME["streaming-llm"], reader="key-value", params={"slots": 4, "sinks": 1})
def test_streaming_llm(law) -> None:
    law()


@conformance(BY_NAME["lacache"], reader="key-value", params={"slots": 4, "step": 1})
def test_lacache(law) -> None:
    law()


@conformance(BY_NAME["random-slots"], reader="key-value", params={"slots": 4})
def test_random_slots(law) -> None:
    law()


@conformance(BY_NAME["h2o"], reader="key-value", params={"ratio": 0.5})
def test_a_state_that_grows(law) -> None:
    law()


@conformance(BY_NAME["compact"], reader="key-value", params={"slots": 4})
def test_compact(law) -> None:
    law()


@conformance(BY_NAME["attention-matching"], reader="key-value", params={"slots": 4, "chunk": 4})
def test_attention_matching(law) -> None:
    law()


@conformance(BY_NAME["expected-attention"], reader="key-value", params={"slots": 4, "sinks": 1})
def test_expected_attention(law) -> None:
    law()


@conformance(BY_NAME["kvzip"], reader="key-value", params={"slots": 4, "chunk": 4})
def test_kvzip(law) -> None:
    law()


@conformance(BY_NAME["h2o"], reader="key-value", params={"slots": 4, "used": 0.5})
def test_heads_that_share_a_budget(law) -> None:
    law()


@conformance(BY_NAME["mean-pool"], reader="key-value", params={"slots": 4})
def test_mean_pool(law) -> None:
    law()


@conformance(BY_NAME["think"], reader="thin-key-value", params={"slots": 4, "window": 2, "pool": 3})
def test_think(law) -> None:
    law()


@conformance(BY_NAME["fastgen"], reader="key-value", params={"slots": 4})
def test_fastgen(law) -> None:
    law()
