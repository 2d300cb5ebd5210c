"""What is refused before it is read: bodies that are too large, and hosts that are not this one."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memwrite_server import errors
from memwrite_server.errors import ApiError


class BodyLimit:
    """Refuses bodies of more than so many bytes, whether they say so or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes of a request's body on their way to the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await errors.response(self._error())(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:
                raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._most:,} bytes", "body_too_large")
