"""What the API says of itself."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gpu_agent.server.api.app import create_app
from gpu_agent.server.api.auth import role_of
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import problem, serving
from tests.server.harness import Node, running

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def described() -> dict[str, Any]:
    return create_app(RegistryService.__new__(RegistryService)).openapi()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


OPERATIONS = [pytest.param(name, operation, id=name) for name, operation in operations()]


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_an_operation_has_a_name_a_summary_a_subject_and_a_role(name: str, operation: dict[str, Any]) -> None:
    assert operation["operationId"].replace("_", "").isalpha()
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    public = operation["x-role"] == "public"
    assert public == name.startswith(("GET /healthz", "GET /readyz"))
    assert public == ("security" not in operation)
    assert public == ("401" not in operation["responses"])


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_every_refusal_is_a_problem_document(name: str, operation: dict[str, Any]) -> None:
    refused = {status: one for status, one in operation["responses"].items() if status >= "400"}
    assert {"400", "403", "413"} <= set(refused)
    assert ("415" in refused) == name.startswith("POST")
    assert all(one["content"] == PROBLEM for one in refused.values())


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_what_is_posted_is_json_and_never_left_out(name: str, operation: dict[str, Any]) -> None:
    assert ("requestBody" in operation) == name.startswith("POST")
    if "requestBody" in operation:
        assert operation["requestBody"]["required"]
        assert list(operation["requestBody"]["content"]) == ["application/json"]


def test_names_of_operations_are_used_once() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)


def test_no_shape_is_described_that_nobody_uses() -> None:
    document = described()
    shapes, text = document["components"]["schemas"], str(document)
    assert [name for name in shapes if f"'#/components/schemas/{name}'" not in text] == []


def test_the_bounds_of_a_number_are_told() -> None:
    shapes = described()["components"]["schemas"]
    count = shapes["JobRequest"]["properties"]["gpu_count"]
    assert (count["type"], count["minimum"], count["maximum"]) == ("integer", 1, 1024)
    uses = shapes["JoinTokenRequest"]["properties"]["uses"]["anyOf"][0]
    assert (uses["type"], uses["minimum"]) == ("integer", 1)


@pytest.mark.parametrize(("name", "operation"), OPERATIONS)
def test_whatever_is_answered_names_its_media_type(name: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        assert all("/" in kind for kind in answer.get("content", ())), f"{name}: {status}"


# The operator API as a whole, over HTTP, on the true registry.


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
    routes = create_app(RegistryService.__new__(RegistryService)).routes
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
