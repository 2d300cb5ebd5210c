"""Mean pooling: neighbouring slots become one, their mean; nothing is dropped, and no attention is looked at."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone, LayerActivations
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import BudgetConfig, counts
from memwrite_kv.candidates import Candidates, Score, Scored
from memwrite_kv.selection import Chosen
from memwrite_kv.turning import turned
from memwrite_kv.writer import SelectionWriter, Take, past_of


class FirstOfGroup(Score):
    """1 for the first candidate of each group, which stands for it.

    The slot's `weight` is the number of tokens that are in it.
    """

    latent: ClassVar[tuple[str, ...]] = ("weight",)

    def __call__(self, candidates: Candidates) -> Scored:
        raise AssertionError("groups depend on the budget")

    def of(self, candidates: Candidates, group: Tensor) -> Scored:
        """Score by groups (B, S), which are in ascending order."""
        first = F.pad(group[:, 1:] != group[:, :-1], (1, 0), value=True)
        score = candidates.zeros() + first[:, None]
        return Scored(score, {"weight": weights_of(candidates)})


class MeanPoolWriter(SelectionWriter):
    """Keeps the means of neighbouring keys and values; the first tokens, `sinks`, stay as they are.

    Candidates are cut into groups of the same number. Keys are moved to their group's middle before they are averaged, and
    old slots count for as many tokens as they hold.
    """

    def __init__(self, config: BudgetConfig, backbone: Backbone) -> None:
        self.first = FirstOfGroup()
        super().__init__(config, backbone, self.first)

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        slots = self.spec.shapes["mask"][0]
        count = counts(self.config, slots, state["mask"].sum(1), context.lengths)

        def observe(seen: LayerActivations) -> None:
            candidates = self._candidates(
                seen.layer, seen.keys, seen.values, seen.queries, seen.scale, state, context
            )
            group = groups(candidates.mask, count, self.config.sinks)

            def fit(chosen: Chosen) -> dict[str, Tensor]:
                return self._means(candidates, group, chosen)

            take(candidates, self.first.of(candidates, group), fit)

        self._backbone.forward(
            self._backbone.embed(context.ids),
            past=past_of(state),
            lengths=context.lengths,
            observe=observe,
        )

    def _means(self, candidates: Candidates, group: Tensor, chosen: Chosen) -> dict[str, Tensor]:
        """Return keys, values, places and weights of the groups (B, S) whose first candidates were chosen."""
        own = torch.arange(chosen.real.shape[1], device=group.device)
        member = (group[:, None] == own[:, None]) & candidates.mask[:, None]
        weight = weights_of(candidates)
        share = member[:, None] * weight[:, :, None]
        total = share.sum(-1)
        share = share / total.clamp(min=1)[..., None]
        places = candidates.positions.to(share.dtype)
        middle = (share @ places[..., None])[..., 0].round()
        # Positions are those of all heads alike, since groups are.
        at = group.clamp(max=chosen.real.shape[1] - 1)
        by = (middle[:, 0].gather(1, at) - places[:, 0]).long()
        keys = turned(self._backbone, candidates.keys, by, candidates.layer).to(share.dtype)
        return {
            "keys": share @ keys,
            "values": share @ candidates.values.to(share.dtype),
            "latent.position": middle,
            "latent.weight": total,
        }


def weights_of(candidates: Candidates) -> Tensor:
    """Return how many tokens each candidate stands for, (B, Hkv, S)."""
    carried = candidates.carried["weight"]
    new = torch.arange(carried.shape[2], device=carried.device) >= candidates.old
    return torch.where(new & candidates.mask[:, None], torch.ones_like(carried), carried)


def groups(mask: Tensor, count: Tensor, sinks: int) -> Tensor:
    """Return the group (B, S) of every candidate: `count` (B,) groups of the same number, up to one.

    The first `sinks` are groups of their own. Padding has a number behind all groups.
    """
    place = mask.cumsum(1) - 1
    real, wanted = mask.sum(1, keepdim=True), count[:, None]
    alone = torch.minimum(torch.full_like(wanted, sinks), wanted - 1).clamp(min=0)
    pooled = alone + (place - alone) * (wanted - alone) // (real - alone).clamp(min=1)
    return torch.where(place < alone, place, pooled).masked_fill(~mask, mask.shape[1])
