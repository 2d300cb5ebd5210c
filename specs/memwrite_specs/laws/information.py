"""The information bound: nobody recalls more than the state's bits can hold."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional as F

from memwrite.errors import MemwriteError
from memwrite.memory import Memory
from memwrite.state import Tokens
from memwrite_specs.case import Case
from memwrite_specs.law import law
from memwrite_specs.laws.shape import grows
from memwrite_specs.pair import Pair

BITS = 8  # of a payload's token, one of 256 by chance
TIMES = 4
WINDOW = 32
SLACK = 30


@law(examples=1, binds=grows, leakage=True)
def information_bound(case: Case) -> None:
    """What is recalled of a random payload is no more than the state's bits: a writer that beats this is leaking.

    The payload holds four times the bits of the smallest state that the writer's config allows. Read from the state with
    the payload's own earlier tokens as the query, each next token is predicted; bits recalled are those saved by coding
    the payload with these predictions, or with a code that trusts the first choice alone. For a state of b bits there
    are at most 2^b such codes, so by Markov's inequality chance saves more than b + 30 bits with probability 2^-30 in
    each of the two ways (Fano's inequality is the same statement about errors). A leak is found from about a third of
    the payload's tokens on.
    """
    pair = smallest(case.pair)
    memory = pair.memory("float32")
    bits = 8 * memory.writer.spec.nbytes
    windows = max(math.ceil(TIMES * bits / BITS / WINDOW), 2)
    payload = [case.rng.randrange(256) for _ in range(windows * WINDOW)]
    # Of fewer windows so few bits could come back that no leak would show.
    enough = (bits + SLACK) // ((BITS - 1) * (WINDOW - 1)) + 1

    def recall(count: int) -> tuple[int, float, int]:
        """Return predicted tokens, bits that came back, and tokens whose first choice was right."""
        return _recalled(case, memory, payload[: count * WINDOW])

    tokens, recalled, right = case.within_positions(recall, windows, min(enough, windows))
    case.require(
        recalled <= bits + SLACK,
        f"of {BITS * tokens} bits of a payload {recalled:.0f} came back ({right} of {tokens} tokens right), but the "
        f"state holds {bits}",
    )


def _recalled(case: Case, memory: Memory, payload: list[int]) -> tuple[int, float, int]:
    context = case.tokens([payload])
    with torch.no_grad():
        state = memory.write(context).state
        windows = torch.tensor(payload).reshape(1, -1, WINDOW)
        query = Tokens(windows, torch.ones_like(windows, dtype=torch.bool))
        logits = memory.read(state, query).logits[..., :-1, :]
    targets = windows[..., 1:]
    count = targets.numel()
    nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
    by_odds = BITS * count - float(nats) / math.log(2)
    right = int((logits.argmax(-1) == targets).sum())
    # A first choice is trusted with 1/2; the other 255 share the rest.
    by_choice = right * (BITS - 1) + (count - right) * (BITS - 1 - math.log2(255))
    return count, max(by_odds, by_choice), right


def smallest(pair: Pair) -> Pair:
    """Return the pair with each whole number of the writer's config at 1, and one layer, where that shrinks its state."""
    best = pair
    for field in dataclasses.fields(pair.writer.config):
        value = pair.params.get(field.name, field.default)
        one: object = 1 if isinstance(value, int) and not isinstance(value, bool) else [0]
        tried = dataclasses.replace(best, params={**best.params, field.name: one})
        try:
            if tried.memory().writer.spec.floats < best.memory().writer.spec.floats:
                best = tried
        except (MemwriteError, ValueError, TypeError):
            continue
    return best
