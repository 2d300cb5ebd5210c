"""Recall of a text from a state: bytes right, and bits gained over having no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from memwrite.evaluation.matching import BlockMatcher
from memwrite.memory import Memory
from memwrite.state import MemoryState, Tokens


@dataclass(frozen=True)
class Recall:
    """What came back of one text.

    Attributes:
        text: decoded greedily from the state alone.
        bytes_right: share of the longer of both texts' bytes that agree, in order, from 0 to 1.
        bits: to encode the text with the model, given the state.
    """

    text: str
    bytes_right: float
    bits: float


def recall(memory: Memory, state: MemoryState, text: str) -> Recall:
    """Decode one state and compare with the `text` that was written.

    Args:
        memory: need not have a writer.
        state: one row.
        text: the original.
    """
    tokens = memory.encode(text, raw=True)
    limit = 2 * int(tokens.lengths)
    decoded = memory.ask(state, max_new_tokens=limit)
    return Recall(decoded, bytes_right(text, decoded), nll_bits(memory, state, tokens))


def bytes_right(text: str, other: str) -> float:
    """Return the share of the longer text's bytes that agree, in order; 1.0 only for equal texts."""
    # One character for each byte.
    ours, theirs = (each.encode().decode("latin-1") for each in (text, other))
    if ours == theirs:
        return 1.0
    blocks = BlockMatcher(ours, theirs).get_matching_blocks()
    return sum(block.size for block in blocks) / max(len(ours), len(theirs))


@torch.no_grad()
def nll_bits(memory: Memory, state: MemoryState, tokens: Tokens) -> float:
    """Return the bits that the model needs for all of the tokens (1, T), given the state."""
    ids = tokens.ids
    output = memory.read(state, tokens)
    logits, first = output.logits, output.first_logits
    if first is None:
        start = torch.full_like(ids[:, :1], memory.backbone.info.bos_id)
        opened = Tokens(torch.cat([start, ids], 1), F.pad(tokens.mask, (1, 0), value=True))
        logits = memory.read(state, opened).logits
    else:
        logits = torch.cat([first[:, None], logits], 1)
    nats = F.cross_entropy(logits[0, :-1], ids[0], reduction="sum")
    return float(nats) / math.log(2)


#: A piece of a text: in both, only in the original, or only in what was recalled.
Piece = tuple[str, str, str]


def differences(text: str, recalled: str) -> list[Piece]:
    """Return (kind, part of the original, part of the recalled) with kind "equal", "replace", "delete" or "insert"."""
    codes = BlockMatcher(text, recalled).get_opcodes()
    return [(kind, text[a:b], recalled[c:d]) for kind, a, b, c, d in codes]
