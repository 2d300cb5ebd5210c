"""Digests of tensors, and a cheap test whether weights have changed, because hashing a large model takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def versions_of(weights: Iterable[Tensor]) -> tuple[object, ...]:
    """Return the address and dtype of each weight, and how often it was changed in place."""
    return tuple((w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights)


class CachedDigest:
    """A digest that is computed again only when the weights that it depends on have changed.

    Args:
        compute: returns the current digest.
    """

    def __init__(self, compute: Callable[[], str]) -> None:
        self._compute = compute
        self._last: tuple[object, str] | None = None

    def of(self, weights: Iterable[Tensor]) -> str:
        """Return the digest, which depends on `weights`."""
        versions = versions_of(weights)
        last = self._last
        if last is None or last[0] != versions:
            self._last = last = versions, self._compute()
        return last[1]


def digest_of(weights: Mapping[str, Tensor], description: str = "") -> str:
    """Return 32 hex digits of sha256 over `description`, names and weights in float32; "" where all are empty."""
    digest = hashlib.sha256(description.encode())
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32] if weights or description else ""


def exact_digest_of(description: str, *groups: Mapping[str, Tensor]) -> str:
    """Return 64 hex digits of sha256 over `description`, names, and the bytes of tensors in their own dtype."""
    digest = hashlib.sha256(description.encode())
    for group in groups:
        for name, tensor in sorted(group.items()):
            digest.update(name.encode())
            numbers = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()
