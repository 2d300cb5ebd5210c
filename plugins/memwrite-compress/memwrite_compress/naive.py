"""The oracle: one example, one long sequence, and a mask that says for every two places whether one sees the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memwrite.backbones.attention_observer import observing
from memwrite.backbones.corrections import correcting
from memwrite.backbones.transformers import TransformersBackbone
from memwrite.protocols import KeyValues, LayerActivations, ProjectionDeltas
from memwrite_compress.aggregate import Block


@dataclass(frozen=True)
class Sequences:
    """What a run over segments, each with its compression tokens, and a query leaves.

    Attributes:
        logits: (Tq, V), of the query.
        keys: of each segment's tokens, (L, Hkv, m, Dh).
        values: likewise.
    """

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def long_sequence(
    backbone: TransformersBackbone,
    tokens: Tensor,
    lora: nn.ModuleList,
    segments: Sequence[Sequence[int]],
    query: Sequence[int],
    sees: Callable[[int, int, bool], bool],
    *,
    conditional: bool,
    counted: bool,
) -> Sequences:
    """Run [segment 0; tokens; segment 1; tokens; ...; query] at once.

    Args:
        backbone: the model.
        tokens: (m, D).
        lora: of the writer.
        segments: token ids.
        query: token ids.
        sees: whether segment i sees the tokens of an earlier segment j; True says that i is the query.
        conditional: the LoRA changes compression tokens alone, not the segments.
        counted: compression tokens take positions.
    """
    parts: list[Tensor] = []
    block: list[int] = []
    is_token: list[bool] = []
    positions: list[int] = []
    at = 0
    for number, ids in enumerate([*segments, query]):
        parts.append(backbone.embed(torch.tensor([list(ids)]))[0])
        block += [number] * len(ids)
        is_token += [False] * len(ids)
        positions += range(at, at + len(ids))
        at += len(ids)
        if number < len(segments):
            parts.append(tokens.to(parts[0].dtype))
            block += [number] * len(tokens)
            is_token += [True] * len(tokens)
            positions += range(at, at + len(tokens))
            at += len(tokens) if counted else 0
    size = len(block)
    visible = torch.zeros(size, size, dtype=torch.bool)
    for place in range(size):
        for other in range(place + 1):
            own = block[place] == block[other]
            query_asks = block[place] == len(segments)
            memory = is_token[other] and sees(block[place], block[other], query_asks)
            visible[place, other] = own or memory
    last = len(segments)
    changed = [t if conditional else b < last for t, b in zip(is_token, block, strict=True)]
    corrections = {
        n: _Lora(layer, torch.tensor(changed, device=tokens.device)) for n, layer in enumerate(lora)
    }
    hidden, seen = run(backbone, torch.cat(parts), visible, positions, corrections)
    places = [
        [p for p in range(size) if is_token[p] and block[p] == number] for number in range(last)
    ]
    return Sequences(
        backbone.logits(hidden[size - len(query) :]),
        [torch.stack([layer.keys[0][:, chosen] for layer in seen]) for chosen in places],
        [torch.stack([layer.values[0][:, chosen] for layer in seen]) for chosen in places],
    )


def running_mean(
    backbone: TransformersBackbone,
    tokens: Tensor,
    lora: nn.ModuleList,
    segments: Sequence[Sequence[int]],
    *,
    recurrent: bool,
    unrotate: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mean keys and values (L, Hkv, m, Dh) of the tokens behind all segments, by CCM-merge.

    Args:
        backbone, tokens, lora, segments: as in `long_sequence`.
        recurrent: a segment sees the mean of those before.
        unrotate: keys are brought back to position 0 before they are averaged, and to their places again.
    """
    count = len(tokens)
    sums: list[tuple[Tensor, Tensor]] = []
    position = 0
    memory: KeyValues | None = None
    for ids in segments:
        inputs = torch.cat([backbone.embed(torch.tensor([list(ids)]))[0], tokens])
        changed = torch.arange(len(inputs)) >= len(ids)
        run = backbone.forward(
            inputs[None],
            past=memory,
            corrections={n: _Lora(layer, changed) for n, layer in enumerate(lora)},
            use_cache=True,
        ).key_values
        assert run is not None
        position += len(ids)
        places = (position + torch.arange(count))[None]
        keys = run.keys[..., -count:, :]
        sums.append(
            (backbone.rotate(keys, -places) if unrotate else keys, run.values[..., -count:, :])
        )
        mean = [torch.stack(parts).mean(0) for parts in zip(*sums, strict=True)]
        found = backbone.rotate(mean[0], places) if unrotate else mean[0], mean[1]
        slots = count if recurrent else 0
        memory = KeyValues(
            found[0][..., :slots, :],
            found[1][..., :slots, :],
            torch.ones(1, slots, dtype=torch.bool),
            torch.tensor([position]),
        )
    return found[0][0], found[1][0]


def summaries(
    backbone: TransformersBackbone,
    tokens: Tensor,
    lora: nn.ModuleList,
    segments: Sequence[Sequence[int]],
    *,
    recurrent: bool,
    keep: int,
) -> Tensor:
    """Return the last hidden states (n, D) at the tokens of the last segments, by AutoCompressor or ICAE.

    Args:
        backbone, tokens, lora, segments: as in `long_sequence`; the LoRA changes all that is read.
        recurrent: a segment is read behind what is kept of those before.
        keep: how many segments are kept.
    """
    count = len(tokens)
    memory = tokens[:0]
    for ids in segments:
        before = memory if recurrent else memory[:0]
        inputs = torch.cat([before, backbone.embed(torch.tensor([list(ids)]))[0], tokens])
        everywhere = torch.ones(len(inputs), dtype=torch.bool)
        corrections = {n: _Lora(layer, everywhere) for n, layer in enumerate(lora)}
        hidden = backbone.forward(inputs[None], corrections=corrections).hidden[0, -count:]
        memory = torch.cat([memory, hidden])[-keep * count :]
    return memory


def aggregated(block: Block, asked: Tensor, bank: Tensor) -> Tensor:
    """Return what one position (D,) becomes in a block of MAC's aggregation over a bank (M, D), a head and a vector at a time."""
    heads = block.heads
    query = (block.query.weight @ block.norm(asked)).reshape(heads, -1)
    parts = []
    for head in range(heads):
        logits, values = [], []
        for vector in bank:
            normed = block.bank_norm(vector)
            key = (block.key.weight @ normed).reshape(heads, -1)[head]
            logits.append(float(query[head] @ key) / math.sqrt(len(key)))
            values.append((block.value.weight @ normed).reshape(heads, -1)[head])
        weights = [math.exp(logit - max(logits)) for logit in logits]
        parts.append(sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True)))
    asked = asked + block.out.weight @ torch.cat(parts) + block.out.bias
    inner = nn.functional.gelu(block.up.weight @ block.mlp_norm(asked) + block.up.bias)
    return asked + block.down.weight @ inner + block.down.bias


def run(
    backbone: TransformersBackbone,
    embeddings: Tensor,
    visible: Tensor,
    positions: Sequence[int],
    corrections: dict[int, Any],
) -> tuple[Tensor, list[LayerActivations]]:
    """Run embeddings (N, D) under a mask (N, N), and return the last hidden states and what each layer computed."""
    seen: list[LayerActivations] = []
    lowest = torch.finfo(embeddings.dtype).min
    mask = torch.zeros(visible.shape, dtype=embeddings.dtype).masked_fill(~visible, lowest)
    with correcting(corrections), observing(seen.append, backbone.info.layers):
        output = backbone.model.base_model(
            inputs_embeds=embeddings[None],
            attention_mask=mask[None, None],
            position_ids=torch.tensor([list(positions)]),
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden, seen


class _Lora:
    """ΔW x = α/r B A x where `changed` (N,), and nothing elsewhere."""

    def __init__(self, layer: Any, changed: Tensor) -> None:
        self._layer, self._changed = layer, changed

    def __call__(self, hidden: Tensor) -> ProjectionDeltas:
        def delta(name: str) -> Callable[[Tensor], Tensor]:
            weight = self._layer.B[name] @ self._layer.A[name] * self._layer._scale
            return lambda inputs: inputs @ weight.T * self._changed[:, None]

        return {name: delta(name) for name in self._layer.A.keys()}  # noqa: SIM118

    def rows(self, index: Tensor) -> _Lora:
        return self
