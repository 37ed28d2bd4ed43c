"""The operator API of a true registry, over a real socket."""

import asyncio
import re
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute, Route

from gpu_agent.registry.credentials import Role
from gpu_agent.server.address import bound_address
from gpu_agent.server.api.app import ApiServer, create_app
from gpu_agent.server.api.auth import App, Authorization, Receive, Scope, Send, role_of
from gpu_agent.server.api.errors import PROBLEM_JSON
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import NewToken
from tests.server.harness import LOOPBACK


@asynccontextmanager
async def serving(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    listener = LOOPBACK.bind()
    server = ApiServer(service, listener, address=LOOPBACK)
    serving = asyncio.ensure_future(server.serve())
    try:
        async with httpx.AsyncClient(base_url=f"http://{bound_address(listener)}", trust_env=False) as client:
            yield client
    finally:
        server.stop()
        await asyncio.wait_for(serving, 5)


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == PROBLEM_JSON
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["detail"]
    return document


# Callers of the operator API, of every kind, and its routes, in a test.


ALL_ROUTES: list[BaseRoute] = list(create_app(RegistryService.__new__(RegistryService)).routes)
ROUTES = sorted(
    {
        (method, route.path)
        for route in ALL_ROUTES
        if isinstance(route, Route)
        for method in route.methods or ()
    }
)
ABOUT_ITSELF = ("/openapi.json", "/docs", "/docs/oauth2-redirect")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    detail: str


class Caller:
    """Calls through the guard to an application that lets everything happen."""

    def __init__(self, service: RegistryService, *, auth_on: bool = True) -> None:
        self.service = service
        self._guard = Authorization(
            answering(200), routes=ALL_ROUTES, desk=service.tokens if auth_on else None, refuse=refusing
        )

    def stop(self) -> None:
        self._guard.stop()

    async def token(self, role: Role) -> str:
        made = await self.service.tokens.create_operator(role, name="ann")
        assert isinstance(made, NewToken)
        return made.token

    async def call(self, method: str, path: str, *authorizations: str) -> Answer:
        said: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            said.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = [(b"authorization", value.encode("latin-1")) for value in authorizations]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "headers": headers,
            "client": ("10.0.0.9", 40_000),
        }
        await self._guard(scope, receive, send)
        start, body = said
        return Answer(start["status"], dict(start["headers"]), body["body"].decode())


def answering(status: int, detail: str = "") -> App:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": detail.encode()})

    return app


def refusing(status: int, code: str, detail: str) -> App:
    return answering(status, f"{code} {detail}")


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


def declared(method: str, path: str) -> str | None:
    """The role that a route's own declaration states; what the API says of itself is read."""
    if path in ABOUT_ITSELF:
        return "read"
    found = [
        role_of(route)
        for route in ALL_ROUTES
        if isinstance(route, Route) and route.path == path and method in (route.methods or ())
    ]
    (role,) = found
    return role


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [record.__dict__["fields"] for record in caplog.records if record.getMessage() == event]
