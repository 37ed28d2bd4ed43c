"""Refusals over HTTP, on a real registry."""

import logging

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from tests.server.api_harness import problem
from tests.server.harness import Node

JSON = {"Content-Type": "application/json"}


async def test_a_wrong_field_is_named_by_its_path(api: httpx.AsyncClient) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "j", "gpu_count": "many"})
    assert refused.status_code == 422
    assert problem(refused)["errors"][0]["path"] == "$.gpu_count"


@pytest.mark.parametrize("path", ["/v1/claims", "/v1/dispatch/explain"])
async def test_of_many_wrong_fields_the_first_ones_are_named_and_the_others_counted(
    path: str, api: httpx.AsyncClient
) -> None:
    wrong = {f"gpu_count{number}": 1 for number in range(1000)}
    refused = problem(await api.post(path, json={"job_id": "j", **wrong}))
    assert [error["path"] for error in refused["errors"]] == [f"$.gpu_count{number}" for number in range(20)]
    assert refused["detail"].endswith("; and 980 more")


@pytest.mark.parametrize("path", ["/v1/claims", "/v1/dispatch/explain"])
async def test_very_many_unknown_fields_are_counted_before_a_model_reads_the_body(
    path: str, api: httpx.AsyncClient
) -> None:
    unknown = {"gpu_cout": 1, **{f"field{number}": 1 for number in range(50_000)}}
    refused = problem(await api.post(path, json={"job_id": 5, **unknown}))
    assert [error["path"] for error in refused["errors"]] == [f"$.{name}" for name in list(unknown)[:20]]
    assert "did you mean `gpu_count`?" in refused["errors"][0]["problem"]
    assert refused["detail"].endswith("; and 49981 more")  # all unknown ones but 20; no model read `job_id`


async def test_very_many_unknown_fields_of_a_part_are_counted_too(api: httpx.AsyncClient) -> None:
    unknown = {f"field{number}": 1 for number in range(2000)}
    claims = [{"job_id": "j"}, {"claim": "c", **unknown}]
    refused = problem(await api.post("/v1/claims/renew", json={"claims": claims}))
    assert refused["errors"][0]["path"] == "$.claims.1.claim"
    assert "did you mean `claim_id`?" in refused["errors"][0]["problem"]
    assert refused["detail"].endswith("; and 1981 more")


async def test_many_labels_are_no_unknown_fields(api: httpx.AsyncClient) -> None:
    labels = {f"label{number}": "x" * 20 for number in range(1000)}
    refused = problem(await api.post("/v1/claims", json={"job_id": "j", "labels": labels}))
    assert "there is no such field" not in refused["detail"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"\xff"], ids=["deep", "torn", "not UTF-8"])
async def test_a_body_that_is_no_json_is_wrong_as_a_whole(api: httpx.AsyncClient, body: bytes) -> None:
    refused = problem(await api.post("/v1/claims", content=body, headers=JSON))
    assert refused["code"] == "INVALID_REQUEST"
    assert "$: not valid JSON" in refused["detail"]


@pytest.mark.parametrize("asked", [("GET", "/nope", 404), ("PUT", "/v1/nodes", 405)])
async def test_an_unknown_route_is_a_problem_that_says_where_to_look(
    api: httpx.AsyncClient, asked: tuple[str, str, int]
) -> None:
    method, path, status = asked
    response = await api.request(method, path)
    assert response.status_code == status
    assert "/docs" in problem(response)["detail"]


async def test_a_wrong_method_is_refused_with_the_allowed_ones(api: httpx.AsyncClient) -> None:
    assert (await api.put("/v1/claims")).headers["allow"] == "GET, POST"
    assert (await api.put("/v1/nodes/node-1")).headers["allow"] == "DELETE, GET"


async def test_a_delete_with_a_body_ends_nothing(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    """What is not there is not found, whatever a request carries."""
    assert ready.node_id
    token = (await api.post("/v1/tokens", json={"kind": "join", "uses": 1, "ttl_seconds": 60})).json()
    named = {"node_id": f"/v1/nodes/{ready.node_id}", "token_id": f"/v1/tokens/{token['token_id']}"}
    for name, path in named.items():
        refused = await api.request("DELETE", path, json={name: "other"})
        assert (refused.status_code, problem(refused)["code"]) == (422, "INVALID_REQUEST")
        assert f"`{name}` in the path" in problem(refused)["detail"]
        unknown = await api.request("DELETE", f"{path}x", json={name: "other"})
        assert unknown.status_code == 404
    assert service.node(ready.node_id) is not None
    assert [one["token_id"] for one in (await api.get("/v1/tokens")).json()["tokens"]] == [token["token_id"]]
    for path in named.values():
        assert (await api.delete(path)).status_code == 204


async def test_an_internal_error_is_a_problem_without_details_and_logged_once(
    service: RegistryService,
    api: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(service, "node", broken)
    with caplog.at_level(logging.ERROR):
        answer = await api.get("/v1/nodes/node-1")
    assert answer.status_code == 500
    assert problem(answer)["code"] == "INTERNAL_ERROR"
    assert "secret" not in answer.text
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert "a secret of the inside" in str(logged.exc_info[1])


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/claims", "GET, POST"),
        ("/v1/claims/renew", "POST"),
        ("/v1/claims/job-1", "DELETE, GET"),
        ("/v1/claims/job-1/renew", "POST"),
        ("/v1/nodes/x/cordon", "POST"),
    ],
)
async def test_a_wrong_method_names_those_of_the_path_that_the_document_shows(
    api: httpx.AsyncClient, path: str, allowed: str
) -> None:
    refused = await api.put(path, json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
