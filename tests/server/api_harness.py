"""The operators' API of a real registry on a real socket, its clients, and its routes."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import bound_address
from gpu_agent.server.api.app import ApiServer, create_app
from gpu_agent.server.api.auth import ROLE
from gpu_agent.server.api.errors import PROBLEM_JSON
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.harness import LOOPBACK
from tests.server.instances import FORWARDED, forwarded
from tests.waiting import patience

ROUTES: dict[tuple[str, str], APIRoute] = {
    (method, route.path_format): route
    for route in create_app().routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
}
"""Every route by method and path, in the order of declaration."""


@asynccontextmanager
async def serving(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    if FORWARDED:
        async with forwarded(service) as client:
            yield client
        return
    listener = LOOPBACK.bind()
    server = ApiServer(service, listener, address=LOOPBACK)
    serving = asyncio.ensure_future(server.serve())
    try:
        async with httpx.AsyncClient(base_url=f"http://{bound_address(listener)}", trust_env=False) as client:
            yield client
    finally:
        server.stop()
        await asyncio.wait_for(serving, patience(5))


@asynccontextmanager
async def dialled(
    api: httpx.AsyncClient,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to an API for bytes that no HTTP client would write."""
    reader, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_to_bytes(api: httpx.AsyncClient, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read all that comes until the registry closes the connection."""
    async with dialled(api) as (reader, writer), asyncio.timeout(patience(5)):
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == PROBLEM_JSON
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["detail"]
    return document


def declared_role(method: str, path: str) -> str | None:
    extra = ROUTES[method, path].openapi_extra
    return None if extra is None else extra.get(ROLE)


def filled(path: str) -> str:
    """A path with an id in each place for one; a stream of events that ends."""
    return re.sub(r"\{[^}]*\}", "x", path) + ("?follow=false" if path == "/v1/events" else "")


async def operator_token(service: RegistryService, role: Role) -> str:
    made = await service.tokens.create_operator(role, name="ann")
    assert isinstance(made, NewToken)
    return made.token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.getMessage() == event]
