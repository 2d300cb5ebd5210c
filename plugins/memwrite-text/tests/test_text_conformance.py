"""The text baselines keep the laws, those about leaks and the information bound among them."""

from __future__ import annotations

from memwrite_specs import conformance
from memwrite_text import LAST_TOKENS, WHOLE_TEXT


@conformance(
    LAST_TOKENS,
    reader="text",
    params={"tokens": 4},
    gaps={"streaming": "the last tokens push out the earlier ones, and four are soon full"},
)
def test_last_tokens(law) -> None:
    law()


@conformance(WHOLE_TEXT, reader="text")
def test_whole_text(law) -> None:
    law()
