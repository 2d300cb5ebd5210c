"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} under an HTTP status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from memwrite.errors import (
    DivergenceError,
    IncompatiblePair,
    InputError,
    MemwriteError,
    PositionsExceeded,
)

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(HTTPException):
    """What a request is refused with.

    Args:
        status: of HTTP.
        message: a sentence.
        code: a word for programs.
        param: the field that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, Any]:
        """Return the response's body."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def no_memory(key: str) -> ApiError:
    """Return the error of a key under which the asking tenant has nothing, whoever else may have."""
    return ApiError(404, f"there is no memory '{key}'", "memory_not_found", "memory")


def of(error: Exception) -> ApiError:
    """Return what a request is refused with where `error` was raised."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, PositionsExceeded):
        return ApiError(400, str(error), "context_length_exceeded")
    if isinstance(error, (InputError, IncompatiblePair)):
        return ApiError(400, str(error))
    if isinstance(error, DivergenceError):
        return ApiError(422, str(error), "diverged")
    if isinstance(error, MemwriteError):
        return ApiError(500, str(error))
    return ApiError(500, f"unexpected {type(error).__name__}")


def response(error: Exception) -> JSONResponse:
    """Return the response to a request that ended in `error`."""
    own = of(error)
    return JSONResponse(own.body, own.status_code, own.headers)


def install(app: FastAPI) -> None:
    """Let an app answer every error in this form."""

    async def raised(request: Request, error: Exception) -> JSONResponse:
        return response(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return response(
            ApiError(400, f"{place or 'the body'}: {first['msg']}", None, place or None)
        )

    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (HTTPException, MemwriteError, Exception):
        app.add_exception_handler(kind, raised)
