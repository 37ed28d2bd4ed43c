"""The operator API of a true registry, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gpu_agent.server.address import bound_address
from gpu_agent.server.operator.operator import OperatorServer
from gpu_agent.server.operator.problems import PROBLEM_JSON
from gpu_agent.server.service import RegistryService
from tests.server.harness import LOOPBACK


@asynccontextmanager
async def serving(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    listener = LOOPBACK.bind()
    server = OperatorServer(service, listener, address=LOOPBACK)
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
