"""Loops that compute what the writers and readers compute, token by token: what they are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def outer_products(hidden: Tensor, norm: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return Generative Adapter's S = Σ_t (A₃ h_t)(A₂ h_t)ᵀ of one layer and head.

    Args:
        hidden: (T, D), what the layer receives.
        norm: (D,), the weight of the RMS norm.
        keys: A₂ (Dk, D).
        values: A₃ (Dv, D).
    """
    total = hidden.new_zeros(len(values), len(keys))
    for token in hidden:
        normal = token / math.sqrt(sum(float(x) ** 2 for x in token) / len(token) + 1e-6) * norm
        for i, row in enumerate(values):
            for j, column in enumerate(keys):
                total[i, j] += (row @ normal) * (column @ normal)
    return total


def adapter_weight(
    matrix: Tensor, inner: Tensor, outer: Tensor, alpha: float, norm: str, rank: int
) -> Tensor:
    """Return ΔW = (α/Dv)·B S̃ A₁ (out, in) of one layer and head.

    Args:
        matrix: S (Dv, Dk).
        inner: A₁ (Dk, in).
        outer: B (out, Dv).
        alpha: α.
        norm: "frobenius", "spectral" or "svd".
        rank: of "svd".
    """
    sizes, vectors = torch.linalg.eigh(matrix.T @ matrix)
    if norm == "frobenius":
        scaled = matrix / math.sqrt(float(sizes.sum()) + 1e-6)
    elif norm == "spectral":
        scaled = matrix / (math.sqrt(float(sizes.max())) + 1e-6)
    else:
        scaled = torch.zeros_like(matrix)
        # U Vᵀ, one singular value after the other: u = S v / σ.
        for size, vector in list(zip(sizes, vectors.T, strict=True))[-rank:]:
            if float(size) > 1e-12 * float(sizes.max()):
                scaled += torch.outer(matrix @ vector / size.sqrt(), vector)
    return alpha / len(matrix) * outer @ scaled @ inner


def chunk_weights(
    features: Tensor, weights: Weights, heads: int, kv_heads: int, blocks: int, residual_blocks: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return Doc-to-LoRA's A (L, r, in) and B (L, r, out) of one chunk, by projection.

    Args:
        features: (L, T, D), without padding.
        weights: of the hypernetwork, by the names in its `state_dict`.
        heads: of the Perceiver's attention.
        kv_heads: of its keys and values.
        blocks: of the Perceiver.
        residual_blocks: of the MLP.
    """
    names = [name.removeprefix("head.") for name in weights if name.startswith("head.")]
    made: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in names}
    for layer, sequence in enumerate(features):
        tokens = [_mlp(token, weights, "perceiver.project") for token in sequence]
        latents = _resampled(tokens, weights, "perceiver.encoder", blocks, heads, kv_heads)
        vectors = _resampled(latents, weights, "perceiver.decoder", 1, heads, kv_heads)
        vectors = [_residual(vector, weights, layer, residual_blocks) for vector in vectors]
        rank = len(vectors) // len(names)
        for number, name in enumerate(names):
            rows = []
            for r, vector in enumerate(vectors[number * rank : (number + 1) * rank]):
                row = vector / vector.norm() @ weights[f"head.{name}"][layer]
                inputs = weights[f"bias_A.{name}"].shape[2]
                scales = (weights[f"scale_{side}.{name}"][layer, r] for side in "AB")
                rows.append(
                    [part * s for part, s in zip((row[:inputs], row[inputs:]), scales, strict=True)]
                )
            for side in range(2):
                made[name][side].append(torch.stack([row[side] for row in rows]))
    return {name: (torch.stack(down), torch.stack(up)) for name, (down, up) in made.items()}


def _rms(vector: Tensor, weight: Tensor) -> Tensor:
    return vector / torch.sqrt(vector.square().mean() + 1e-6) * weight


def _layer_norm(vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = vector - vector.mean()
    return centred / torch.sqrt(centred.square().mean() + 1e-5) * weight + bias


def _silu(vector: Tensor) -> Tensor:
    return vector / (1 + torch.exp(-vector))


def _mlp(vector: Tensor, weights: Weights, name: str) -> Tensor:
    gate, up, down = (weights[f"{name}.{part}.weight"] for part in ("gate", "up", "down"))
    return down @ (_silu(gate @ vector) * (up @ vector))


def _resampled(
    tokens: list[Tensor], weights: Weights, name: str, blocks: int, heads: int, kv_heads: int
) -> list[Tensor]:
    latents = list(weights[f"{name}.latents"])
    for block in range(blocks):
        own = f"{name}.blocks.{block}"
        latents = [_block(latent, tokens, weights, own, heads, kv_heads) for latent in latents]
    return [_rms(latent, weights[f"{name}.norm.weight"]) for latent in latents]


def _block(
    latent: Tensor, tokens: list[Tensor], weights: Weights, name: str, heads: int, kv_heads: int
) -> Tensor:
    norm = {
        part: weights[f"{name}.norms.{part}.weight"]
        for part in ("latents", "sequence", "attended", "before_mlp", "after_mlp")
    }
    query, key, value, out = (
        weights[f"{name}.{part}.weight"] for part in ("query", "key", "value", "out")
    )
    width = len(query) // heads
    asked = query @ _rms(latent, norm["latents"])
    seen = [_rms(token, norm["sequence"]) for token in tokens]
    heard = []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        shared = head // (heads // kv_heads)
        of = slice(shared * width, (shared + 1) * width)
        scores = [float(asked[at] @ (key @ token)[of]) / math.sqrt(width) for token in seen]
        shares = [math.exp(score - max(scores)) for score in scores]
        parts = [
            share / sum(shares) * (value @ token)[of]
            for share, token in zip(shares, seen, strict=True)
        ]
        heard.append(torch.stack(parts).sum(0))
    latent = latent + _rms(out @ torch.cat(heard), norm["attended"])
    return latent + _rms(
        _mlp(_rms(latent, norm["before_mlp"]), weights, f"{name}.mlp"), norm["after_mlp"]
    )


def _residual(vector: Tensor, weights: Weights, layer: int, blocks: int) -> Tensor:
    for block in range(blocks):
        own = {
            part.removeprefix(f"residual.{block}."): weight
            for part, weight in weights.items()
            if part.startswith(f"residual.{block}.")
        }
        inner = _layer_norm(vector, own["before.weight"], own["before.bias"])
        inner = _silu(inner @ own["up"][layer] + own["up_bias"][layer])
        outer = inner @ own["down"][layer] + own["down_bias"][layer]
        vector = vector + _layer_norm(outer, own["after.weight"], own["after.bias"])
    return vector
