"""/v1/memories: write, look at, ask, go on writing, copy and delete."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query

from memwrite.stores import Entry
from memwrite_server.access import Served, Tenant
from memwrite_server.jobs import Answer, Ask, Written
from memwrite_server.measure import Measure, Worth
from memwrite_server.schemas import AppendRequest, AskRequest, ForkRequest, PutRequest
from memwrite_server.service import Service

router = APIRouter(prefix="/v1/memories")


@router.get("")
def listed(
    service: Served,
    tenant: Tenant,
    prefix: str = "",
    after: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """List a tenant's memories by key, those behind `after`."""
    found = list(islice(service.shelf.list(tenant, prefix, after), limit + 1))
    data = [service.shelf.described(key, entry) for key, entry in found[:limit]]
    return {"object": "list", "data": data, "has_more": len(found) > limit}


@router.put("/{key:path}")
async def put(key: str, request: PutRequest, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Write a text into a new memory; the text is not kept."""
    with service.admitted(tenant):
        written, entry = await service.put(
            tenant, key, request.text, request.model, request.expires_in
        )
        answer = _written(service, key, entry, written)
        if request.measure:
            worth: Worth = await service.do(service.model(request.model), Measure(request.text))
            answer |= {"value_kept": worth.value, "cache_bytes": worth.cache_bytes}
        return answer


@router.get("/{key:path}")
def got(key: str, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Say what is known of a memory."""
    return service.shelf.looked_at(tenant, key)


@router.delete("/{key:path}")
async def delete(key: str, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Remove a memory without a trace."""
    await service.delete(tenant, key)
    return {"id": key, "object": "memory.deleted", "deleted": True}


@router.post("/{key:path}/ask")
async def ask(key: str, request: AskRequest, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Answer a question from a memory, which stays as it is."""
    with service.admitted(tenant):
        model, state = await service.state(tenant, key, None)
        prompt = await service.prompt(model, state, request.question)
        settings = service.settings
        most = min(request.max_tokens or settings.max_tokens, settings.most_tokens)
        answer: Answer = await service.do(model, Ask(state, prompt, {"max_new_tokens": most}))
        return {
            "object": "memory.answer",
            "memory": key,
            "model": model,
            "answer": answer.text,
            "finish_reason": answer.reason,
        }


@router.post("/{key:path}/append")
async def append(
    key: str, request: AppendRequest, service: Served, tenant: Tenant
) -> dict[str, Any]:
    """Write a text into a memory that has read others."""
    with service.admitted(tenant):
        written, entry = await service.append(tenant, key, request.text)
        return _written(service, key, entry, written)


@router.post("/{key:path}/fork")
async def fork(key: str, request: ForkRequest, service: Served, tenant: Tenant) -> dict[str, Any]:
    """Copy a memory to another key; both go their own ways from there."""
    entry = await service.fork(tenant, key, request.to, request.expires_in)
    return service.shelf.described(request.to, entry)


def _written(service: Service, key: str, entry: Entry, written: Written) -> dict[str, Any]:
    return {**service.shelf.described(key, entry, written.state), "tokens": written.tokens}
