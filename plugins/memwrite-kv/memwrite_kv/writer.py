"""The writer of the family: the model reads the context once, and each head keeps its best slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from memwrite.errors import ConfigError
from memwrite.inference.positions import rewind
from memwrite.protocols import Backbone, KeyValues, LayerActivations, WriteOutput
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import BudgetConfig, counts, spec_of, spec_of_slots
from memwrite_kv.candidates import Candidates, Score, Scored
from memwrite_kv.selection import Chosen, best, shared_among_heads

#: Makes of the chosen slots what takes the place of their own tensors, by name.
Fit = Callable[[Chosen], dict[str, Tensor]]
#: Takes the candidates of one layer with their scores and, where there is one, a fit; returns what is kept of them.
Take = Callable[[Candidates, Scored, Fit | None], Chosen]
#: Is shown the candidates of every layer, first layer first.
Watch = Callable[[Candidates], None]


class SelectionWriter(nn.Module):
    """Keeps those slots of the model's own keys and values that a score prefers, for each layer and head.

    What is kept already competes with what is read, so that a memory can be written on and on. It never sees a question.

    Args:
        config: the budget.
        backbone: the model that reads; never changed.
        score: what a slot is worth.
    """

    #: Whether its states have a bias on each slot.
    biased = False
    #: Tokens that a write reads again behind the context, at a time.
    repeated = 0

    def __init__(self, config: BudgetConfig, backbone: Backbone, score: Score) -> None:
        super().__init__()
        self.config = config
        self.score = score
        self._backbone = backbone
        self.biased = self.biased or config.used < 1
        self.spec = spec_of(config, backbone.info, score.latent, self.biased)
        #: What a state of so many slots needs of the positions when it goes on.
        self.reserved_positions = self.spec.shapes["mask"][0]

    def init(self, batch_size: int, /) -> MemoryState:
        """Return states in which every slot is empty."""
        return self.spec.zeros(batch_size, self._backbone.info.device)

    def write(self, state: MemoryState, context: PackedTokens, /) -> WriteOutput:
        """Read the context behind what is kept, and keep the best of both."""
        return WriteOutput(self.select(state, context))

    def select(
        self, state: MemoryState, context: PackedTokens, watch: Watch | None = None
    ) -> MemoryState:
        """Return what `write` does; `watch` may look at what each layer chooses from."""
        new = context.lengths
        state = self._with_room(state, new)
        kept = state["mask"].sum(1)
        count = counts(self.config, self.spec.shapes["mask"][0], kept, new)
        slots = int(count.max()) if self.config.ratio else self.spec.shapes["mask"][0]
        spec = self.spec
        if self.config.ratio:
            spec = spec_of_slots(
                slots, self._backbone.info, self.score.latent, self.biased, bounded=False
            )
        sinks, recent = self.config.sinks, self.config.recent
        layers: list[dict[str, Tensor]] = []

        def take(candidates: Candidates, scored: Scored, fit: Fit | None) -> Chosen:
            if watch is not None:
                watch(candidates)
            score = scored.score
            if candidates.bias is not None:
                score = score.masked_fill(candidates.bias.isneginf(), -torch.inf)
            chosen = best(score, candidates.mask, count, slots, sinks, recent)
            parts = {
                "keys": candidates.keys,
                "values": candidates.values,
                "latent.position": candidates.positions,
            }
            parts |= {f"latent.{name}": tensor for name, tensor in scored.carried.items()}
            picked = {name: chosen.of(tensor) for name, tensor in parts.items()}
            picked |= {} if fit is None else fit(chosen)
            if self.biased:
                picked.setdefault("bias", torch.zeros_like(chosen.of(score)))
            if self.config.used < 1:
                shared = shared_among_heads(score, chosen, self.config.used)
                hidden = ~shared & chosen.real[:, None]
                picked["bias"] = picked["bias"].masked_fill(hidden, -torch.inf)
            layers.append(picked)
            return chosen

        self._read(state, context, take)
        tensors = {
            name: torch.stack([layer[name] for layer in layers], 1).to(spec.dtype_of(name))
            for name in layers[0]
        }
        tensors["mask"] = torch.arange(slots, device=count.device) < count[:, None]
        tensors["next_position"] = state["next_position"] + new
        written = MemoryState(spec, {name: tensors[name] for name in spec.tensors})
        # What is read behind a memory needs positions, too.
        most = 0 if self.config.rewind else self._backbone.info.positions * 3 // 4
        return self._rewound(written, written["next_position"] > most)

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        """Run the model over the context, and hand on each layer's candidates with their scores, first layer first."""

        def observe(seen: LayerActivations) -> None:
            candidates = self._candidates(
                seen.layer, seen.keys, seen.values, seen.queries, seen.scale, state, context
            )
            with torch.no_grad():
                scored = self.score(candidates)
            take(candidates, scored, None)

        self._backbone.forward(
            self._backbone.embed(context.ids),
            past=past_of(state),
            lengths=context.lengths,
            observe=observe,
        )

    def _candidates(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        scale: float,
        state: MemoryState,
        context: PackedTokens,
    ) -> Candidates:
        """Return what one layer can choose from; it was run without old slots where no row has one."""
        old = keys.shape[2] - context.ids.shape[1]
        shape = keys.shape[:2]
        length = context.ids.shape[1]
        places = state["next_position"][:, None] + torch.arange(length, device=context.ids.device)
        held = {name: t[:, layer, :, :old] for name, t in state.tensors.items() if t.ndim > 2}
        empty = places.new_zeros(*shape, length, dtype=self._backbone.info.state_dtype)
        bias = held.get("bias")
        return Candidates(
            layer,
            keys,
            values,
            torch.cat([state["mask"][:, :old], context.mask], 1),
            torch.cat([held["latent.position"], places[:, None].expand(*shape, -1)], 2),
            queries,
            scale,
            None if bias is None else torch.cat([bias, empty], 2),
            {n: torch.cat([held[f"latent.{n}"], empty], 2) for n in self.score.latent},
            old,
        )

    def _with_room(self, state: MemoryState, new: Tensor) -> MemoryState:
        """Return the state, rewound in those rows whose new tokens would not find free positions."""
        ends = state["next_position"] + new + new.clamp(max=self.repeated)
        return self._rewound(state, ends > self._backbone.info.positions)

    def _rewound(self, state: MemoryState, rows: Tensor) -> MemoryState:
        """Give the slots of the rows (B,) bool the positions from 0 on, in slot order for each head.

        The keys of a model whose positions are not rotations stay as they are: there only the positions behind the
        memory become free.
        """
        if not bool(rows.any()):
            return state
        key_values, places = _key_values(state), state["latent.position"]
        real = key_values.mask
        try:
            moved = rewind(self._backbone, key_values, places.long())
        except ConfigError:
            moved = replace(key_values, next_position=real.sum(1))
        own = (real.cumsum(1) - 1).masked_fill(~real, 0)[:, None, None].expand(places.shape)
        tensors = {
            **state.tensors,
            "keys": moved.keys,
            "next_position": moved.next_position,
            "latent.position": own.to(places.dtype),
        }
        return replace(state, tensors=tensors).where(rows, state)


def past_of(state: MemoryState) -> KeyValues | None:
    """Return what a state holds as the model takes it; None where no row holds anything."""
    return _key_values(state) if bool(state["mask"].any()) else None


def _key_values(state: MemoryState) -> KeyValues:
    return KeyValues(
        state["keys"],
        state["values"],
        state["mask"],
        state["next_position"],
        state.tensors.get("bias"),
    )
