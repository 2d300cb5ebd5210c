"""Who asks: the tenant of a request's bearer token."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from memwrite_server.errors import ApiError
from memwrite_server.service import Service


def service_of(request: Request) -> Service:
    """Return the service behind an app."""
    service: Service = request.app.state.service
    return service


def tenant_of(request: Request) -> str:
    """Return the tenant who asks.

    Raises:
        ApiError: there is no token, or it is nobody's.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    tenant = service_of(request).tenants.of(token.strip() if scheme.lower() == "bearer" else None)
    if tenant is None:
        raise ApiError(
            401,
            "give a token that this server knows, as in 'Authorization: Bearer mw-...'",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return tenant


Served = Annotated[Service, Depends(service_of)]
Tenant = Annotated[str, Depends(tenant_of)]
