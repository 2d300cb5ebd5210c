"""What is refused before it is read: bodies that are too large, or come too slowly."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memwrite_server import errors
from memwrite_server.errors import ApiError


class BodyLimit:
    """Refuses bodies of more than so many bytes, whether they say so or not, and those that take too many seconds."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes of a request's body on their way to the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await errors.response(self._too_large())(scope, receive, send)
            return
        taken, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal taken, whole
            try:
                async with asyncio.timeout_at(None if whole else deadline):
                    message = await receive()
            except TimeoutError:
                text = f"the body took more than {self._seconds:g} seconds"
                raise ApiError(408, text, "timeout") from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self._most:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._most:,} bytes", "body_too_large")
