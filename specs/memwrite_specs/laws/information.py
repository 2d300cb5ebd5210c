"""The information bound: nobody recalls more than the state's bits can hold."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch.nn import functional as F

from memwrite.errors import MemwriteError
from memwrite.state import Tokens
from memwrite_specs.case import Case
from memwrite_specs.law import law
from memwrite_specs.laws.shape import grows
from memwrite_specs.pair import Pair

BITS = 8  # of a payload's token, one of 256 by chance
TIMES = 4
WINDOW = 32
SLACK = 30


@law(examples=1, binds=grows)
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
    count = max(math.ceil(TIMES * bits / BITS / WINDOW), 2) * WINDOW
    payload = torch.tensor([[case.chance.randrange(256) for _ in range(count)]])
    context = case.tokens(payload.tolist())
    with torch.no_grad():
        state = memory.write(context).state
        windows = payload.reshape(1, -1, WINDOW)
        query = Tokens(windows, torch.ones_like(windows, dtype=torch.bool))
        logits = memory.read(state, query).logits[..., :-1, :]
    wanted = windows[..., 1:]
    nats = F.cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="sum")
    by_odds = BITS * wanted.numel() - float(nats) / math.log(2)
    right = int((logits.argmax(-1) == wanted).sum())
    # A first choice is trusted with 1/2; the other 255 share the rest.
    by_choice = right * (BITS - 1) + (wanted.numel() - right) * (BITS - 1 - math.log2(255))
    most = max(by_odds, by_choice)
    case.require(
        most <= bits + SLACK,
        f"of a payload of {BITS * count} bits {most:.0f} came back ({right} of {wanted.numel()} tokens right), but the "
        f"state holds {bits}",
    )


def smallest(pair: Pair) -> Pair:
    """The same pair with every whole number of the writer's config at 1, and one layer, where that makes its state smaller."""
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
