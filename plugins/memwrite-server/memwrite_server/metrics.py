"""What a server counts, in the text format of Prometheus; no tenant's name and no text is in it."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "memwrite_requests", "Requests", ["method", "route", "status"], registry=own
        )
        self.seconds = Histogram(
            "memwrite_request_seconds",
            "From a request's head to the last byte of its response",
            ["route"],
            registry=own,
        )
        self.batches = Histogram(
            "memwrite_batch_size", "Jobs in a batch", ["model"], registry=own, buckets=_SIZES
        )
        self.tokens = Counter(
            "memwrite_tokens", "Tokens written and generated", ["model", "kind"], registry=own
        )
        self._values = Gauge(
            "memwrite_now",
            "Requests under way, jobs waiting, bytes prefilled",
            ["what"],
            registry=own,
        )

    def watch(self, what: str, value: Callable[[], float]) -> None:
        """Show what `value` returns whenever the metrics are read."""
        self._values.labels(what).set_function(value)

    def text(self) -> bytes:
        """Return everything as text."""
        return generate_latest(self._registry)


class Measured:
    """Counts requests, and times them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begun)
