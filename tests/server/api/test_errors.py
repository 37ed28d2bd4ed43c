"""Refusals over HTTP, on the true registry."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from tests.server.api_harness import problem

JSON = {"Content-Type": "application/json"}


async def test_a_request_that_cannot_be_read_names_the_path(api: httpx.AsyncClient) -> None:
    refused = await api.post("/v1/claims", json={"job_id": "j", "gpu_count": "many"})
    assert refused.status_code == 422
    assert problem(refused)["errors"][0]["path"] == "$.gpu_count"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"\xff"], ids=["deep", "torn", "not UTF-8"])
async def test_a_body_that_is_no_json_names_the_whole_as_its_place(
    api: httpx.AsyncClient, body: bytes
) -> None:
    refused = problem(await api.post("/v1/claims", content=body, headers=JSON))
    assert refused["code"] == "INVALID_REQUEST"
    assert "$: not valid JSON" in refused["detail"]


@pytest.mark.parametrize("chunked", [False, True], ids=["stated length", "chunked"])
async def test_a_body_over_the_limit_is_refused_unread(api: httpx.AsyncClient, *, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    content = pieces() if chunked else b"x" * 4 * 2**20
    assert problem(await api.post("/v1/claims", content=content, headers=JSON))["code"] == "BODY_TOO_LARGE"


@pytest.mark.parametrize("asked", [("GET", "/nope", 404), ("PUT", "/v1/nodes", 405)])
async def test_what_there_is_not_is_a_problem_that_says_where_to_look(
    api: httpx.AsyncClient, asked: tuple[str, str, int]
) -> None:
    method, path, status = asked
    response = await api.request(method, path)
    assert response.status_code == status
    assert "/docs" in problem(response)["detail"]


async def test_a_method_that_a_path_has_not_is_refused_with_those_that_it_has(api: httpx.AsyncClient) -> None:
    assert (await api.put("/v1/claims")).headers["allow"] == "GET, POST"
    assert (await api.put("/v1/nodes/node-1")).headers["allow"] == "DELETE, GET"


async def test_a_fault_of_ours_is_a_problem_without_a_trace_and_logged_once(
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
