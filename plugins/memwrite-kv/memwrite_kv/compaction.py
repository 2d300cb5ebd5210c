"""Writers that choose slots by reference queries behind the context, and fit what is kept to what these queries see."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from memwrite.protocols import Backbone, KeyValues, LayerActivations
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv import matching
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Asking, Candidates, Score, Scored
from memwrite_kv.matching import Reference
from memwrite_kv.second_reading import first_reading, repeat
from memwrite_kv.selection import Chosen
from memwrite_kv.turning import turned
from memwrite_kv.writer import SelectionWriter, Take, past_of

SCORES = ("mean", "rms", "max")
QUERIES = ("own", "repeat")


@dataclass(frozen=True)
class CompactConfig(BudgetConfig):
    """Configures compaction by reference queries.

    Attributes:
        queries: whose attention counts: "own" are the context's queries, moved to the position behind the context, from
            where they see all of it; "repeat" are those of a second pass that repeats the context behind itself.
        most: at most so many of them, spread evenly over the context.
        score: what a slot is worth: the "mean", root mean square ("rms") or "max" of its attention weights.
        value_norm: multiply that by the norm of the value.
        bias: fit a bias of each slot, so that a head pays the memory as much attention as it would pay the context.
        refit: fit new values, so that what a head reads from the memory is what it would read from the context.
        on_policy: with "repeat", a layer's queries come from a pass in which the layers below are compacted already: as
            many passes as there are layers.
        chunk: with "repeat", tokens that are repeated at a time.

    Raises:
        ValueError: a value is out of range.
    """

    queries: str = "own"
    most: int = 256
    score: str = "rms"
    value_norm: bool = True
    bias: bool = False
    refit: bool = True
    on_policy: bool = False
    chunk: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("most", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("queries", QUERIES), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(known)}, got '{getattr(self, name)}'"
                )
        if self.on_policy and self.queries != "repeat":
            raise ValueError("on_policy goes with queries: repeat")


@dataclass(frozen=True)
class MatchingConfig(CompactConfig):
    """Configures Attention Matching as in its paper's fast setting; see `CompactConfig`."""

    queries: str = "repeat"
    value_norm: bool = False
    bias: bool = True


class ReferenceScore(Score):
    """The attention that reference queries pay, which stand behind the context and see all of it."""

    def __init__(self, config: CompactConfig) -> None:
        self._config = config

    def __call__(self, candidates: Candidates) -> Scored:
        raise AssertionError("reference queries are not among the candidates")

    def of(self, reference: Reference) -> Scored:
        """Score by the weights of the reference queries."""
        weights = reference.weights
        if self._config.score == "max":
            score = weights.amax(2)
        elif self._config.score == "rms":
            score = weights.square().sum(2).sqrt()
        else:
            score = weights.sum(2)
        if self._config.value_norm:
            score = score * reference.values.norm(dim=-1)
        return Scored(score, {})


class CompactWriter(SelectionWriter):
    """Keeps the slots that reference queries attend to, with values (and a bias) that serve these queries best."""

    def __init__(self, config: CompactConfig, backbone: Backbone) -> None:
        self.biased = config.bias
        self.params = config
        self.worth = ReferenceScore(config)
        super().__init__(config, backbone, self.worth)
        if config.queries == "repeat":
            self.repeated = min(config.chunk, max(backbone.info.positions // 4, 1))
            self.reserved_positions += self.repeated

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        if self.params.queries == "repeat":
            self._read_twice(state, context, take)
            return
        asking = Asking.evenly(context.lengths, self.params.most)

        def observe(seen: LayerActivations) -> None:
            with torch.no_grad():
                index = asking.index[:, None, :, None]
                shape = (-1, seen.queries.shape[1], -1, seen.queries.shape[-1])
                queries = seen.queries.gather(2, index.expand(*shape))
                ahead = context.lengths[:, None] - asking.index
                queries = turned(self._backbone, queries, ahead, seen.layer)
            candidates = self._candidates(
                seen.layer, seen.keys, seen.values, queries, seen.scale, state, context
            )
            self._compact(candidates, asking.real, take)

        self._backbone.forward(
            self._backbone.embed(context.ids),
            past=past_of(state),
            lengths=context.lengths,
            observe=observe,
        )

    def _read_twice(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        past = past_of(state)
        read, scale = first_reading(self._backbone, context, past)
        layers = range(read.keys.shape[1])
        asked = self._asked(context, read, layers)
        for layer in layers:
            if self.params.on_policy and layer:
                asked = self._asked(context, read, [layer])
            queries, real = asked[layer]
            keys, values = read.keys[:, layer], read.values[:, layer]
            candidates = self._candidates(layer, keys, values, queries, scale, state, context)
            chosen, fitted = self._compact(candidates, real, take)
            if self.params.on_policy:
                read = _compacted(read, layer, chosen, fitted)

    def _asked(
        self, context: PackedTokens, read: KeyValues, layers: range | list[int]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the queries of a repetition at some layers, with which of them are real."""
        found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

        def observe(seen: LayerActivations, real: Tensor) -> None:
            if seen.layer in found:
                found[seen.layer].append((seen.queries.detach(), real))

        repeat(self._backbone, context, read, self.repeated, observe)
        asking = Asking.evenly(context.lengths, self.params.most)
        asked = {}
        for layer, parts in found.items():
            queries = torch.cat([part for part, _ in parts], 2)
            index = asking.index[:, None, :, None].expand(
                -1, queries.shape[1], -1, queries.shape[-1]
            )
            asked[layer] = queries.gather(2, index), asking.real
        return asked

    def _compact(
        self, candidates: Candidates, real: Tensor, take: Take
    ) -> tuple[Chosen, dict[str, Tensor]]:
        with torch.no_grad():
            reference = _reference(candidates, real)
            scored = self.worth.of(reference)
        fitted: dict[str, Tensor] = {}

        def fit(chosen: Chosen) -> dict[str, Tensor]:
            with torch.no_grad():
                bias = chosen.of(reference.values[..., 0]).double() * 0
                if self.params.bias:
                    bias = matching.mass(reference, chosen)
                    fitted["bias"] = bias
                if self.params.refit:
                    fitted["values"] = matching.values(reference, chosen, bias)
            return fitted

        return take(candidates, scored, fit), fitted


def _reference(candidates: Candidates, real: Tensor) -> Reference:
    """Return the logits of queries that see all candidates."""
    dtype, heads = candidates.zeros().dtype, candidates.keys.shape[1]
    batch, every, _, width = candidates.queries.shape
    queries = candidates.queries.reshape(batch, heads, -1, width).to(dtype) * candidates.scale
    logits = queries @ candidates.keys.to(dtype).mT
    if candidates.bias is not None:
        logits = logits + candidates.bias[:, :, None]
    logits = logits.masked_fill(~candidates.mask[:, None, None], -torch.inf)
    return Reference(logits, candidates.values.to(dtype), real.repeat(1, every // heads))


def _compacted(read: KeyValues, layer: int, chosen: Chosen, fitted: dict[str, Tensor]) -> KeyValues:
    """Return the cache in which one layer sees nothing but its compacted slots."""
    shape = read.keys.shape
    dtype = torch.promote_types(read.keys.dtype, torch.float32)
    bias = read.keys.new_zeros(shape[:-1], dtype=dtype) if read.bias is None else read.bias.clone()
    values = read.values.clone()
    real = chosen.real[:, None].expand(chosen.index.shape)
    # What is no slot goes to one more place, which is cut off.
    at = torch.where(real, chosen.index, shape[3])
    added = fitted.get("bias", torch.zeros_like(at, dtype=dtype)).to(dtype)
    hidden = F.pad(torch.full_like(bias[:, layer], -torch.inf), (0, 1))
    bias[:, layer] = hidden.scatter(2, at, added)[..., :-1]
    if "values" in fitted:
        place = at[..., None].expand(-1, -1, -1, shape[-1])
        padded = F.pad(values[:, layer], (0, 0, 0, 1))
        values[:, layer] = padded.scatter(2, place, fitted["values"].to(values.dtype))[:, :, :-1]
    return replace(read, values=values, bias=bias)
