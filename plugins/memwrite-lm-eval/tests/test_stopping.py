"""Rows end at stop strings, each group by itself."""

from __future__ import annotations

import torch
from memwrite_lm_eval.stopping import StopStrings

from memwrite.backbones.tokenizers import ByteTokenizer


def test_rows_that_are_generated_apart_end_apart() -> None:
    tokenizer = ByteTokenizer()
    watching = StopStrings(tokenizer, (tokenizer.eos_id,), ["no"], 3)
    for rows, words, over in (([2, 0], ["no", "on"], [True, False]), ([1], ["no"], [True])):
        stream = watching.rows(rows)
        ids = torch.tensor([tokenizer.encode(word) for word in words])
        stream.put(ids)
        for column in ids.T:
            assert not watching(ids, None).any()
            stream.put(column)
        assert watching(ids, None).tolist() == over
