"""FastGen (Ge et al. 2024, arXiv 2310.01801): every head keeps what the cheapest policy keeps that recovers its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.errors import InputError
from memwrite.protocols import Backbone, LayerActivations, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import BudgetConfig, spec_of_slots
from memwrite_kv.candidates import Asking, Candidates, Score, Scored
from memwrite_kv.selection import Chosen
from memwrite_kv.writer import SelectionWriter, Take, past_of

#: What a token is, as its slot remembers it.
PUNCTUATION, SPECIAL = 1, 2


@dataclass(frozen=True)
class FastGenConfig(BudgetConfig):
    """Configures FastGen. With a `ratio` of 1 it is the paper's: a head may keep everything.

    Attributes:
        recovered: share of its attention that the policy of a head has to recover (T).
        local: share of a text's tokens that are local to a token (r_l).
        frequent: share of a text's tokens that are frequent, most attended to (r_f).
        punctuation: the characters that are punctuation, where one is a token.
        queries: profile with at most so many tokens, spread evenly over a longer context; None asks all.

    Raises:
        ValueError: a value is out of range.
    """

    recovered: float = 0.95
    local: float = 0.3
    frequent: float = 0.3
    punctuation: str = ".,:;!?"
    queries: int | None = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.recovered <= 1:
            raise ValueError(f"recovered must be above 0 and at most 1, got {self.recovered}")
        for name in ("local", "frequent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.queries is not None and self.queries < 1:
            raise ValueError(f"queries must be at least 1, got {self.queries}")


class Profile(Score):
    """Chooses a policy for each head, from five that keep more and more.

    Special tokens; punctuation beside them; the most frequent tokens beside both; the last tokens beside all three;
    everything. The first and last tokens that the budget keeps in any case count as special.
    """

    latent: ClassVar[tuple[str, ...]] = ("mark", "attention")

    def __init__(self, config: FastGenConfig) -> None:
        self._config = config

    def __call__(self, candidates: Candidates) -> Scored:
        raise AssertionError("a profile also says what is kept")

    def of(self, candidates: Candidates, marks: Tensor) -> tuple[Scored, Tensor]:
        """Return scores in the policy's order, and which candidates (B, Hkv, S) each head keeps.

        Args:
            candidates: of one layer.
            marks: (B, T), what each of the new tokens is.
        """
        config, new = self._config, marks.shape[1]
        seen = candidates.mask[:, None].expand(candidates.keys.shape[:3])
        if candidates.bias is not None:
            seen = seen & ~candidates.bias.isneginf()
        count, place = seen.sum(-1, keepdim=True), seen.cumsum(-1) - 1
        mark = candidates.carried["mark"].clone()
        mark[..., mark.shape[2] - new :] = marks[:, None].to(mark.dtype)

        asking = Asking.evenly(candidates.lengths, config.queries)
        received = candidates.zeros()
        for weights, _ in candidates.attention(asking):
            paid = weights.mean(2).sum(2)
            received = received + F.pad(paid, (0, received.shape[2] - paid.shape[2]))
        attention = candidates.carried["attention"] + received

        always = (place < config.sinks) | (place >= count - config.recent)
        special = seen & ((mark == SPECIAL) | always)
        most = attention.masked_fill(~seen, -torch.inf).argsort(
            dim=-1, descending=True, stable=True
        )
        frequent = most.argsort(-1) < (count * config.frequent - 1e-9).ceil()
        window = (count * config.local + 1e-9).long().clamp(min=1)
        punctuated = special | (seen & (mark == PUNCTUATION))
        frequented = punctuated | (seen & frequent)
        kept = torch.stack(
            [special, punctuated, frequented, frequented | (seen & (place >= count - window)), seen]
        )
        near = self._near(candidates, asking, seen & ~frequented, place, window)
        recovered = torch.stack([(received * some).sum(-1) for some in kept[:3]])
        recovered = torch.cat([recovered, recovered[2:] + near])
        enough = recovered >= config.recovered * asking.real.sum(1)[:, None] - 1e-9
        policy = torch.where(enough.any(0), enough.to(torch.uint8).argmax(0), len(kept) - 1)
        own = kept.gather(0, policy[None, ..., None].expand(1, *seen.shape))[0]
        score = attention / attention.amax(-1, keepdim=True).clamp(min=1e-9)
        score = score + own.to(score.dtype) + special + punctuated
        return Scored(score, {"mark": mark, "attention": attention}), own

    def _near(
        self, candidates: Candidates, asking: Asking, others: Tensor, place: Tensor, window: Tensor
    ) -> Tensor:
        """Return the attention (B, Hkv) that those who ask pay to `others` (B, Hkv, S) in the window before them."""
        near, start = candidates.zeros().sum(-1), 0
        for weights, _ in candidates.attention(asking):
            length, stop = weights.shape[3:]
            index = asking.index[:, start : start + length] + candidates.old
            own = place.gather(2, index[:, None].expand(-1, place.shape[1], -1))
            local = place[:, :, None, :stop] > (own - window)[..., None]
            counted = local & others[:, :, None, :stop]
            near = near + (weights.mean(2) * counted).sum((-2, -1))
            start += length
        return near


class FastGenWriter(SelectionWriter):
    """Keeps in each head what the head's policy keeps: a bias of -inf hides the other slots from it.

    Where slots run out, the least attended to go first, special tokens and punctuation last. With a `ratio` the state
    has as many slots as its fullest head needs.
    """

    biased = True

    def __init__(self, config: FastGenConfig, backbone: Backbone) -> None:
        self._profile = Profile(config)
        super().__init__(config, backbone, self._profile)
        info = backbone.info
        self._special = tuple(sorted({info.bos_id, info.eos_id, *info.end_ids}))
        marks = [_encoded(mark, backbone) for mark in config.punctuation]
        self._punctuation = tuple(sorted({ids[0] for ids in marks if len(ids) == 1}))

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read the context behind what is kept, and let each head's policy choose from both."""
        written = self.select(state, context)
        return WriteOutput(written if self.config.ratio is None else self._packed(written))

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        ids = context.ids
        marks = torch.isin(ids, ids.new_tensor(self._punctuation)) * PUNCTUATION
        marks = marks.masked_fill(torch.isin(ids, ids.new_tensor(self._special)), SPECIAL)

        def observe(seen: LayerActivations) -> None:
            candidates = self._candidates(
                seen.layer, seen.keys, seen.values, seen.queries, seen.scale, state, context
            )
            with torch.no_grad():
                scored, own = self._profile.of(candidates, marks)

            def fit(chosen: Chosen) -> dict[str, Tensor]:
                hidden = chosen.of(own.to(scored.score.dtype)) == 0
                bias = torch.zeros_like(scored.score).gather(2, chosen.index)
                return {"bias": bias.masked_fill(hidden & chosen.real[:, None], -torch.inf)}

            take(candidates, scored, fit)

        self._backbone.forward(
            self._backbone.embed(ids), past=past_of(state), lengths=context.lengths, observe=observe
        )

    def _packed(self, state: MemoryState) -> MemoryState:
        """Move the slots that a head has to the front, and drop those that no head has."""
        seen = state["mask"][:, None, None] & ~state["bias"].isneginf()
        count = seen.sum(-1).amax((1, 2))
        slots = int(count.max())
        order = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[..., :slots]
        seen, mask = (
            seen.gather(-1, order),
            torch.arange(slots, device=count.device) < count[:, None],
        )
        tensors = {"mask": mask, "next_position": state["next_position"]}
        for name in state.tensors.keys() - tensors.keys():
            tensor, index, real = state[name], order, seen
            if tensor.ndim > order.ndim:
                index = order[..., None].expand(*order.shape, tensor.shape[-1])
                real = seen[..., None]
            tensors[name] = tensor.gather(3, index).masked_fill(~real, 0)
        hidden = mask[:, None, None] & ~seen
        tensors["bias"] = tensors["bias"].masked_fill(hidden, -torch.inf)
        spec = spec_of_slots(slots, self._backbone.info, self.score.latent, True, bounded=False)
        return MemoryState(spec, {name: tensors[name] for name in spec.tensors})


def _encoded(mark: str, backbone: Backbone) -> list[int]:
    """Return the ids of a mark; none where the tokenizer does not know it."""
    try:
        return backbone.encode(mark)
    except InputError:
        return []
