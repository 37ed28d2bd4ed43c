"""The operator API as a whole, over HTTP, on the true registry."""

import logging

import httpx
import pytest
from fastapi.routing import APIRoute

from gpu_agent.server.operator.operator import application
from gpu_agent.server.operator.routes import role_of
from gpu_agent.server.service import RegistryService
from tests.server.api import problem, serving
from tests.server.harness import Node, running

ROUTES = {
    "DELETE /v1/claims/{job_id}": "operate",
    "DELETE /v1/nodes/{node_id}": "admin",
    "DELETE /v1/tokens/{token_id}": "admin",
    "GET /healthz": "public",
    "GET /metrics": "read",
    "GET /readyz": "public",
    "GET /v1/claims": "read",
    "GET /v1/events": "read",
    "GET /v1/exclusions": "read",
    "GET /v1/nodes": "read",
    "GET /v1/nodes/{node_id}": "read",
    "GET /v1/nodes/{node_id}/events": "read",
    "GET /v1/nodes/{node_id}/why": "read",
    "GET /v1/thresholds": "read",
    "GET /v1/tokens": "admin",
    "HEAD /healthz": "public",
    "HEAD /readyz": "public",
    "POST /v1/backup": "admin",
    "POST /v1/claims": "operate",
    "POST /v1/claims/{job_id}/renew": "operate",
    "POST /v1/dispatch/explain": "read",
    "POST /v1/dispatch/select": "read",
    "POST /v1/nodes/{node_id}/cordon": "operate",
    "POST /v1/nodes/{node_id}/drain": "operate",
    "POST /v1/nodes/{node_id}/reclaim": "admin",
    "POST /v1/nodes/{node_id}/refresh": "operate",
    "POST /v1/nodes/{node_id}/reregister": "operate",
    "POST /v1/nodes/{node_id}/resume": "operate",
    "POST /v1/nodes/{node_id}/rotate": "admin",
    "POST /v1/nodes/{node_id}/uncordon": "operate",
    "POST /v1/tokens": "admin",
}


def test_every_route_declares_the_role_that_it_needs() -> None:
    routes = application(RegistryService.__new__(RegistryService)).routes
    declared = {
        f"{method} {route.path}": role_of(route)
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert declared == ROUTES


async def test_a_foreign_page_is_refused_before_anything_is_done(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/drain"
    rebound = await api.post(path, json={}, headers={"host": "evil.example"})
    form = await api.post(path, content="{}", headers={"content-type": "text/plain"})
    assert problem(rebound)["code"] == "HOST_NOT_ALLOWED"
    assert problem(form)["code"] == "JSON_REQUIRED"
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "ready"


@pytest.mark.parametrize("path", ["/v1/nodes/", "//v1/nodes", "/v1/nodes%2F"])
async def test_a_path_that_is_nearly_one_of_ours_is_none(api: httpx.AsyncClient, path: str) -> None:
    assert problem(await api.get(f"{api.base_url}{path}"))["code"] == "NOT_FOUND"


async def test_where_a_stranger_says_that_it_comes_from_is_not_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with running(auth_on=True) as service, serving(service) as api:
        for place in ("10.0.0.1", "10.0.0.2", "not an address"):
            claimed = {"x-forwarded-for": place, "forwarded": f"for={place}"}
            assert (await api.get("/v1/nodes", headers=claimed)).status_code == 401
    noted = [vars(one)["fields"] for one in caplog.records if one.getMessage() == "operator_unauthorized"]
    assert noted == [{"address": "127.0.0.1", "reason": "no token"}]
