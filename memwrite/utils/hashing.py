"""Digests of weights, taken anew only where these have changed: hashing a large model takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor


class CachedDigest:
    """A digest with the versions of the weights that it was taken of.

    Args:
        take: the digest as it is now.
    """

    def __init__(self, take: Callable[[], str]) -> None:
        self._take = take
        self._last: tuple[object, str] | None = None

    def of(self, weights: Iterable[Tensor]) -> str:
        """The digest, which depends on `weights`."""
        now = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
        last = self._last
        if last is None or last[0] != now:
            self._last = last = now, self._take()
        return last[1]


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """32 hex digits of sha256 over names and weights, in float32; "" where there are none."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32] if weights else ""
