"""What a state reveals to whoever has it and the model: its context, reconstructed from the state alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from memwrite.config import PartConfig
from memwrite.errors import InputError
from memwrite.evaluation.recall import bytes_right, nll_bits
from memwrite.memory import Memory
from memwrite.state import MemoryState

_BEAMS = 4


@dataclass(frozen=True)
class Reconstruction:
    """A text that was decoded from the state.

    Attributes:
        prompt: what was put before it; "" for nothing.
        text: what was decoded.
        bits: by which the state makes prompt and text together likelier than the model alone; what is at most 0 is
            the model's own invention.
    """

    prompt: str
    text: str
    bits: float


@dataclass(frozen=True)
class Original:
    """How much of the text that was written, given to the auditor, the state holds.

    Attributes:
        bytes_right: share of its bytes that came back, in order, from 0 to 1.
        bits: of the text, in all, for the model alone.
        bits_revealed: by how many fewer it needs with this state: what an attacker need not guess.
    """

    bytes_right: float
    bits: float
    bits_revealed: float


@dataclass(frozen=True)
class Audit:
    """A lower bound of what a state reveals: a better attack may find more.

    Attributes:
        state_bytes: its size.
        found: likeliest first.
        original: None where the text that was written is not known.
    """

    state_bytes: int
    found: list[Reconstruction]
    original: Original | None = None


def audit(
    memory: Memory,
    state: MemoryState,
    prompts: Sequence[str] = (),
    original: str | None = None,
    longest: int = 256,
) -> Audit:
    """Reconstruct what was written: let the memory speak, greedily and with beams, and continue prompts.

    Args:
        memory: that reads the state; no writer is needed, nor used.
        state: one row.
        prompts: beginnings to continue besides.
        original: what was written, to compare with.
        longest: tokens to decode, for each.
    """
    bits_of: dict[tuple[str, str], float] = {}
    for prompt in ("", *prompts):
        for beams in (1, _BEAMS):
            try:
                text = memory.ask(state, prompt, raw=True, max_new_tokens=longest, num_beams=beams)
            except InputError:
                if prompt:
                    raise  # about the prompt; a memory that fills every position decodes nothing
                continue
            if text.strip():
                bits_of[prompt, text] = _gained(memory, state, prompt + text)[1]
    found = [Reconstruction(prompt, text, bits) for (prompt, text), bits in bits_of.items()]
    found.sort(key=lambda one: -one.bits)
    comparison = None
    if original is not None:
        right = max((bytes_right(original, one.prompt + one.text) for one in found), default=0.0)
        comparison = Original(right, *_gained(memory, state, original))
    return Audit(state.nbytes, found, comparison)


def _gained(memory: Memory, state: MemoryState, text: str) -> tuple[float, float]:
    """Return the bits of the text for the model alone, and by how many fewer it has with the state.

    The text is cut to the model's positions. "Alone" is with zeros for a state or without a memory, whichever needs
    fewer bits.
    """
    conditioning = memory.condition(state)
    past = conditioning.key_values
    used = conditioning.longest_prefix + (0 if past is None else past.mask.shape[1])
    tokens = memory.encode(text, raw=True).columns(
        0, max(memory.backbone.info.positions - used - 1, 0)
    )
    nothing = PartConfig("no-memory")
    bare = Memory.from_config(
        replace(memory.config, writer=nothing, reader=nothing), backbone=memory.backbone
    )
    alone = min(
        nll_bits(memory, state.map(torch.zeros_like), tokens),
        nll_bits(bare, bare.writer.init(1), tokens),
    )
    return alone, alone - nll_bits(memory, state, tokens)
