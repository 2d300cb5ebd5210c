"""The application: its routes, its limits, and what happens when it starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

import memwrite
from memwrite_server import errors, memory_routes, openai_routes, page_routes
from memwrite_server.access import Served
from memwrite_server.limits import BodyLimit
from memwrite_server.metrics import Measured
from memwrite_server.service import Service

#: What a browser on this machine may call an open server, so that no other site's name can be made to lead to it.
LOCAL = ["localhost", "127.0.0.1", "[::1]"]


def create_app(service: Service) -> FastAPI:
    """Return the app that serves `service`, and closes it when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="memwrite",
        version=memwrite.__version__,
        lifespan=lifespan,
        docs_url=None,  # its page needs another server's scripts
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    app.include_router(openai_routes.router)
    app.include_router(memory_routes.router)
    app.include_router(page_routes.router)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route("/metrics", _metrics, methods=["GET"], response_model=None)
    settings = service.settings
    app.add_middleware(BodyLimit, most=settings.body, seconds=settings.seconds)
    app.add_middleware(Measured, metrics=service.metrics)
    if service.tenants.open:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    return app


async def _health() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "ok"}


async def _metrics(service: Served) -> Response:
    """Return the counters, as Prometheus reads them."""
    return Response(service.metrics.text(), media_type=service.metrics.content_type)


async def _sweep(service: Service) -> None:
    """Remove what has expired, now and then."""
    while True:
        await asyncio.to_thread(service.shelf.expire)
        await asyncio.sleep(service.settings.sweep)
