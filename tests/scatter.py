"""A throw-away writer whose every promise can be computed by hand."""

from __future__ import annotations

import random
from functools import cache

import torch
from hypothesis import strategies as st
from memwrite_specs.testing import Rows
from support import described, without_params
from torch import nn
from torch.nn import functional as F

from memwrite import Memory, MemoryState, StateSpec, Tokens
from memwrite.backbones.loading import load_backbone
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.config import Config, PartConfig
from memwrite.plugins.builtin.readers import PrefixReader
from memwrite.protocols import WriteOutput

SLOTS, WIDTH, RESERVE, ROOM = 3, 32, 4, 60


class Scatter(nn.Module):
    """Adds the squashed sum of a context's embeddings to the slot that each token's id names."""

    def __init__(self, backbone: TransformersBackbone, reserved_positions: int = RESERVE) -> None:
        super().__init__()
        self._backbone = backbone
        self.reserved_positions = reserved_positions
        self.spec = StateSpec("prefix", {"memory": (SLOTS, WIDTH)}, dtype=torch.float64)
        self.matrix = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64))
        self.seen: list[Tokens] = []

    def init(self, batch_size: int, /) -> MemoryState:
        zeros = torch.zeros(batch_size, SLOTS, WIDTH, dtype=torch.float64)
        return MemoryState(self.spec, {"memory": zeros})

    def write(self, state: MemoryState, context: Tokens, /) -> WriteOutput:
        self.seen.append(context)
        share = F.one_hot(context.ids % SLOTS, SLOTS) * context.mask[..., None]
        embeddings = self._backbone.embed(context.ids) @ self.matrix
        total = share.to(embeddings.dtype).mT @ embeddings
        memory = state["memory"] + torch.tanh(total)
        energy = memory.square().mean((1, 2))
        trace = {"energy": energy.detach()[None]}
        return WriteOutput(MemoryState(self.spec, {"memory": memory}), {"energy": energy}, trace)


@cache
def backbone(family: str) -> TransformersBackbone:
    return load_backbone(described(family))


def scattering(family: str = "gpt2", reserved_positions: int = RESERVE) -> Memory:
    config = Config(described(family), PartConfig("scatter"), PartConfig("prefix"))
    return Memory(
        backbone(family),
        Scatter(backbone(family), reserved_positions),
        without_params(PrefixReader),
        config,
    )


def spread(lists: Rows, seed: int) -> Tokens:
    """The rows with padding of some id left, right and between, as `seed` throws it; 0 pads right."""
    throw = random.Random(seed)
    width = max(map(len, lists)) + (throw.randrange(3) if seed else 0)
    ids = torch.full((len(lists), width), throw.randrange(258))
    mask = torch.zeros(len(lists), width, dtype=torch.bool)
    for row, real in enumerate(lists):
        places = sorted(throw.sample(range(width), len(real))) if seed else range(len(real))
        ids[row, list(places)] = torch.tensor(real, dtype=torch.int64)
        mask[row, list(places)] = True
    return Tokens(ids, mask)


ROW = st.lists(st.integers(0, 257), max_size=6)
ROWS = st.lists(ROW, min_size=1, max_size=4)
SEEDS = st.integers(0, 99)
LONG = st.lists(
    st.integers(0, 150).map(lambda length: [7 * index % 258 for index in range(length)]),
    min_size=1,
    max_size=3,
)
