"""What a server is told: where it keeps memories, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of one server.

    Attributes:
        body: bytes of a request's body.
        seconds: that a request may take, from its arrival to its last byte.
        waiting: requests to models that are under way at once, over all tenants.
        each: of them, those of one tenant.
        batch: requests that a model answers in one batch.
        max_tokens: new tokens of an answer where a request does not say.
        most_tokens: that a request may ask for.
        prefills: bytes of each model's prefill cache.
        sweep: seconds between two removals of what has expired.
    """

    body: int = 1 << 20
    seconds: float = 120.0
    waiting: int = 256
    each: int = 128
    batch: int = 16
    max_tokens: int = 128
    most_tokens: int = 1024
    prefills: int = 1 << 28
    sweep: float = 60.0
