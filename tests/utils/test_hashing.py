"""Digests stay what they are: saved files and stores hold them."""

from __future__ import annotations

import hashlib

import torch

from memwrite.utils.hashing import CachedDigest, digest_of, exact_digest_of

WEIGHTS = {"b": torch.arange(3.0), "a": torch.tensor([1, 2], dtype=torch.bfloat16)}
FLOATS = torch.tensor([1.0, 2.0]).numpy().tobytes(), torch.arange(3.0).numpy().tobytes()


def test_a_digest_is_over_names_in_order_and_float32() -> None:
    data = b"a" + FLOATS[0] + b"b" + FLOATS[1]
    assert digest_of(WEIGHTS) == hashlib.sha256(data).hexdigest()[:32]
    assert digest_of(WEIGHTS, "of a") == hashlib.sha256(b"of a" + data).hexdigest()[:32]
    assert digest_of({}) == ""


def test_an_exact_digest_is_over_groups_and_bytes() -> None:
    own = {"a": WEIGHTS["a"]}
    data = b"x" + b"a" + b"\x80\x3f\x00\x40" + b"b" + FLOATS[1]
    assert exact_digest_of("x", own, {"b": WEIGHTS["b"]}) == hashlib.sha256(data).hexdigest()
    assert exact_digest_of("x", {"a": WEIGHTS["a"].float()}) != exact_digest_of("x", own)


def test_a_cached_digest_is_taken_again_after_a_change_only() -> None:
    weight = torch.zeros(2)
    taken: list[str] = []

    def take() -> str:
        taken.append(digest_of({"w": weight}))
        return taken[-1]

    cached = CachedDigest(take)
    assert cached.of([weight]) == cached.of([weight])
    assert len(taken) == 1
    weight.add_(1)
    assert cached.of([weight]) == digest_of({"w": weight})
    assert len(taken) == 2
