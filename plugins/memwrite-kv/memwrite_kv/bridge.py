"""Presses of kvpress (https://github.com/NVIDIA/kvpress), or whatever has their methods, as writers.

A press is never imported from here: it is an object with a method `score` or `compress`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memwrite.backbones.decoder_layers import attention_layers
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.errors import ConfigError, InputError
from memwrite.protocols import LayerActivations
from memwrite.state import MemoryState, PackedTokens
from memwrite_kv.budget import BudgetConfig
from memwrite_kv.candidates import Asking, Candidates, Score, Scored
from memwrite_kv.writer import SelectionWriter, Take, past_of


class PressWriter(SelectionWriter):
    """Keeps the slots that a press would keep, in a state of this library's own budget.

    Args:
        press: has `score(module, hidden_states, keys, values, attentions, kwargs) -> (B, Hkv, S)`, or else
            `compress(...)` with the same arguments that returns those keys and values that it keeps; its
            `compression_ratio` is set, on a copy, to what the budget asks for.
        backbone: a transformers model.
        attentions: hand over the attention weights (B, H, T, T) of each layer, which some presses need.
        budget: slots, bytes or ratio, sinks and recent, see `BudgetConfig`.

    Raises:
        ConfigError: the press has neither method, or a value of the budget is out of range.
    """

    def __init__(
        self,
        press: object,
        backbone: TransformersBackbone,
        *,
        attentions: bool = False,
        **budget: Any,
    ) -> None:
        if not (hasattr(press, "score") or hasattr(press, "compress")):
            raise ConfigError(
                f"a press has a method score or compress, but {type(press).__name__} has neither"
            )
        try:
            config = BudgetConfig(**{"sinks": 0, **budget})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the budget of a press: {error}") from None
        self._press = PressScore(press, backbone, attentions)
        super().__init__(config, backbone, self._press)

    def _read(self, state: MemoryState, context: PackedTokens, take: Take) -> None:
        def observe(seen: LayerActivations) -> None:
            candidates = self._candidates(
                seen.layer, seen.keys, seen.values, seen.queries, seen.scale, state, context
            )
            kept = candidates.mask.sum(1)
            if self.config.ratio is None:
                kept = kept.clamp(max=self.spec.shapes["mask"][0])
            with torch.no_grad():
                scored = self._press.of(candidates, seen.hidden, kept.tolist())
            take(candidates, scored, None)

        self._backbone.forward(
            self._backbone.embed(context.ids),
            past=past_of(state),
            lengths=context.lengths,
            observe=observe,
        )


class PressScore(Score):
    """Asks a press, one row at a time, so that it never sees padding."""

    def __init__(self, press: Any, backbone: TransformersBackbone, attentions: bool) -> None:
        self._press, self._backbone, self._attentions = press, backbone, attentions

    def __call__(self, candidates: Candidates) -> Scored:
        raise AssertionError("a press looks at hidden states, too")

    def of(self, candidates: Candidates, hidden: Tensor, kept: list[int]) -> Scored:
        """Score the candidates of one layer.

        Args:
            candidates: of B rows.
            hidden: (B, T, D), what the layer's attention receives.
            kept: how many slots each row keeps.

        Raises:
            InputError: the press does not keep what it was given, or another number.
        """
        scores = candidates.zeros()
        for row, count in enumerate(kept):
            real, length = candidates.mask[row], int(candidates.lengths[row])
            if not length:
                continue
            arguments = self._arguments(candidates, hidden, row, real, length)
            if hasattr(self._press, "score"):
                score = self._press.score(*arguments)[0].to(scores.dtype)
            else:
                score = self._kept(arguments, count).to(scores.dtype)
            scores[row, :, real] = score
        return Scored(scores, {})

    def _arguments(
        self, candidates: Candidates, hidden: Tensor, row: int, real: Tensor, length: int
    ) -> tuple[Any, ...]:
        model: Any = self._backbone.model
        places = candidates.positions[row, 0, candidates.old :][:length].long()
        states = hidden[row : row + 1, :length]
        keys, values = candidates.keys[row, :, real][None], candidates.values[row, :, real][None]
        rotary = getattr(model.base_model, "rotary_emb", None)
        kwargs: dict[str, Any] = {"cache_position": places}
        if rotary is not None:
            kwargs["position_embeddings"] = rotary(states, places[None])
        module = _Borrowed(attention_layers(model)[candidates.layer][1], rotary)
        attentions = None
        if self._attentions:
            index = torch.arange(length, device=real.device).expand(len(hidden), -1)
            asking = Asking(index, candidates.mask[:, candidates.old :][:, :length])
            width = candidates.keys.shape[2]
            blocks = [
                F.pad(weights[row : row + 1], (0, width - weights.shape[-1]))
                for weights, _ in candidates.attention(asking)
            ]
            attentions = torch.cat(blocks, 3).flatten(1, 2)[..., real]
        return module, states, keys, values, attentions, kwargs

    def _kept(self, arguments: tuple[Any, ...], count: int) -> Tensor:
        """Return 1 for the slots (Hkv, S) that `compress` keeps, which are known by their keys, and 0 for others."""
        press, keys = copy.copy(self._press), arguments[2]
        press.compression_ratio = max(1 - (count + 0.5) / keys.shape[2], 0.0)
        found, _ = press.compress(*arguments)
        heads = zip(found[0], keys[0], strict=True)
        same = torch.stack([(few[:, None] == all_[None]).all(-1) for few, all_ in heads])
        if found.shape[2] != min(count, keys.shape[2]) or not bool(same.any(-1).all()):
            raise InputError(
                f"{type(press).__name__} was to keep {count} of {keys.shape[2]} slots, but returned {found.shape[2]}, or "
                f"keys that are not the model's own: only presses that choose slots, the same number for each head, can "
                f"be written into a state"
            )
        return same.any(1)


class _Borrowed:
    """An attention module as a press sees it, with the rotary embedding that kvpress puts there; the model's own stays
    as it is, whatever the press sets on it.
    """

    def __init__(self, module: nn.Module, rotary: Any) -> None:
        self._module = module
        self.rotary_emb = rotary

    @property
    def __class__(self) -> type:  # what it is asked for by `isinstance`
        return type(self._module)

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError(f"this stays a {type(self._module).__name__}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
