"""/v1/models, /v1/chat/completions and /v1/completions, in OpenAI's shape."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from memwrite.backbones.segmentation import TextOrMessages
from memwrite_server import errors
from memwrite_server.access import Served, Tenant
from memwrite_server.jobs import Answer, Ask
from memwrite_server.schemas import ChatRequest, CompletionRequest, Sampling
from memwrite_server.service import Service
from memwrite_server.settings import Settings

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(service: Served, tenant: Tenant) -> dict[str, Any]:
    """List the models that are served."""
    return {"object": "list", "data": [_model(name) for name in service.models]}


@router.get("/models/{name}")
async def model(name: str, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Return one model."""
    return _model(service.model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "memwrite"}


@router.post("/chat/completions", response_model=None)
async def chat(request: ChatRequest, service: Served, tenant: Tenant) -> Response:
    """Answer a conversation from a memory, which stays as it is."""
    messages = [message.plain() for message in request.messages]
    most = request.max_completion_tokens or request.max_tokens
    return await _answered(service, tenant, request, messages, _Shape.chat(), most)


@router.post("/completions", response_model=None)
async def completions(request: CompletionRequest, service: Served, tenant: Tenant) -> Response:
    """Continue a text behind a memory, which stays as it is."""
    shape, most = _Shape.completion(), request.max_tokens
    return await _answered(service, tenant, request, request.prompt, shape, most)


class _Shape:
    """How one of the two kinds of answers is written down."""

    def __init__(self, kind: str, whole: str, part: str, chats: bool) -> None:
        self._id = f"{kind}-{uuid.uuid4().hex}"
        self._whole, self._part, self._chats = whole, part, chats
        self._created = int(time.time())

    @classmethod
    def chat(cls) -> _Shape:
        return cls("chatcmpl", "chat.completion", "chat.completion.chunk", True)

    @classmethod
    def completion(cls) -> _Shape:
        return cls("cmpl", "text_completion", "text_completion", False)

    def whole(self, model: str, answer: Answer, prompt: int) -> dict[str, Any]:
        """Return a whole answer."""
        said = (
            {"message": {"role": "assistant", "content": answer.text}}
            if self._chats
            else {"text": answer.text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": answer.reason}
        return {
            **self._head(self._whole, model),
            "choices": [choice],
            "usage": _usage(answer, prompt),
        }

    def piece(self, model: str, text: str, first: bool) -> dict[str, Any]:
        """Return a piece of an answer."""
        said: dict[str, Any] = {"text": text}
        if self._chats:
            said = {"delta": {**({"role": "assistant"} if first else {}), "content": text}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
        return {**self._head(self._part, model), "choices": [choice]}

    def end(self, model: str, answer: Answer) -> dict[str, Any]:
        """Return what ends a stream."""
        said: dict[str, Any] = {"delta": {}} if self._chats else {"text": ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": answer.reason}
        return {**self._head(self._part, model), "choices": [choice]}

    def usage(self, model: str, answer: Answer, prompt: int) -> dict[str, Any]:
        """Return the chunk that counts tokens, behind the end."""
        return {**self._head(self._part, model), "choices": [], "usage": _usage(answer, prompt)}

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": model}


def _usage(answer: Answer, prompt: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.tokens,
        "total_tokens": prompt + answer.tokens,
    }


def _options(request: Sampling, most: int | None, settings: Settings) -> dict[str, Any]:
    """Return options of `Memory.generate`."""
    options: dict[str, Any] = {
        "max_new_tokens": min(most or settings.max_tokens, settings.most_tokens)
    }
    if request.temperature:
        options |= {"do_sample": True, "temperature": request.temperature, "top_k": 0}
        if request.top_p is not None:
            options["top_p"] = request.top_p
    return options


async def _answered(
    service: Service,
    tenant: str,
    request: Sampling,
    asked: TextOrMessages,
    shape: _Shape,
    most: int | None,
) -> Response:
    admission = service.admitted(tenant)
    admission.__enter__()
    try:
        model, state = await service.state(tenant, request.memory, request.model)
        raw = True if isinstance(asked, str) else None
        prompt = await service.prompt(model, state, asked, raw)
        options = _options(request, most, service.settings)
        seed = request.seed if request.temperature else None

        def job(receive: Callable[[str], object] | None = None) -> Ask:
            return Ask(state, prompt, options, request.stops, seed, receive)

        length = prompt.ids.shape[1]
        if not request.stream:
            answer: Answer = await service.do(model, job())
            response: Response = JSONResponse(shape.whole(model, answer, length))
            admission.__exit__(None, None, None)
            return response
        usage = request.stream_options is not None and request.stream_options.include_usage
        pieces = service.stream(model, job)
        # What is wrong with the request shows before the first piece, when there is still a status to say it with.
        first = await anext(pieces)
        events = _events(pieces, first, shape, model, length if usage else None)
        return _Stream(events, admission)
    except BaseException:
        admission.__exit__(None, None, None)
        raise


async def _events(
    pieces: AsyncIterator[str | Answer],
    first: str | Answer,
    shape: _Shape,
    model: str,
    usage: int | None,
) -> AsyncIterator[str]:
    begun = False
    piece = first
    try:
        while isinstance(piece, str):
            yield _event(shape.piece(model, piece, not begun))
            begun = True
            piece = await anext(pieces)
        if not begun:
            yield _event(shape.piece(model, "", True))
        yield _event(shape.end(model, piece))
        if usage is not None:
            yield _event(shape.usage(model, piece, usage))
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(errors.of(error).body)
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


class _Stream(StreamingResponse):
    """Server-sent events; whatever becomes of them, the request is under way no longer afterwards."""

    def __init__(self, events: AsyncIterator[str], admission: AbstractContextManager[None]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._events, self._admission = events, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            async with aclosing(self._events):  # type: ignore[type-var]
                await super().__call__(scope, receive, send)
        finally:
            self._admission.__exit__(None, None, None)
