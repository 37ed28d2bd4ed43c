"""What the API refuses before a route runs, on a real socket: foreign web pages, other bodies, odd paths."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from gpu_agent.server.api import auth
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import problem
from tests.server.harness import Node, until

JSON = {"Content-Type": "application/json"}


async def refusal(answer: httpx.Response) -> tuple[int, str] | None:
    return None if answer.is_success else (answer.status_code, str(problem(answer)["code"]))


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "localhost:8081", "LOCALHOST", "[::1]:8081", "127.0.0.1"])
async def test_a_name_of_this_machine_is_allowed(api: httpx.AsyncClient, host: str) -> None:
    assert await refusal(await api.get("/v1/nodes", headers={"host": host})) is None


@pytest.mark.parametrize("host", ["evil.example:8081", "127.0.0.1.evil.example", "", "[", "10.0.0.1:8081"])
async def test_a_name_that_was_rebound_to_this_machine_is_refused(api: httpx.AsyncClient, host: str) -> None:
    answer = await api.get("/healthz", headers={"host": host})
    assert await refusal(answer) == (403, "HOST_NOT_ALLOWED")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nodes/x/resume"])
async def test_a_malformed_host_is_no_internal_error(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(path, json={}, headers={"host": "["})
    assert answer.status_code in (403, 404)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost"]
)
async def test_a_web_page_of_another_origin_is_refused(api: httpx.AsyncClient, origin: str) -> None:
    answer = await api.get("/v1/nodes", headers={"origin": origin})
    assert await refusal(answer) == (403, "ORIGIN_NOT_ALLOWED")


async def test_our_own_web_page_is_allowed(api: httpx.AsyncClient) -> None:
    origin = f"http://{api.base_url.host}:{api.base_url.port}"
    assert await refusal(await api.get("/v1/nodes", headers={"origin": origin})) is None


async def test_a_refused_request_changes_nothing(api: httpx.AsyncClient, ready: Node) -> None:
    path = f"/v1/nodes/{ready.node_id}/drain"
    rebound = await api.post(path, json={}, headers={"host": "evil.example"})
    form = await api.post(path, content="{}", headers={"content-type": "text/plain"})
    assert problem(rebound)["code"] == "HOST_NOT_ALLOWED"
    assert problem(form)["code"] == "JSON_REQUIRED"
    assert (await api.get(f"/v1/nodes/{ready.node_id}")).json()["status"] == "ready"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_a_body_that_a_web_form_can_send_is_refused(api: httpx.AsyncClient, kind: str) -> None:
    answer = await api.post("/v1/nodes/x/drain", content="{}", headers={"content-type": kind})
    assert await refusal(answer) == (415, "JSON_REQUIRED")


async def test_a_post_without_a_body_needs_the_content_type_too(api: httpx.AsyncClient) -> None:
    assert await refusal(await api.post("/v1/nodes/x/resume")) == (415, "JSON_REQUIRED")


async def test_json_is_allowed_with_any_charset(api: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert await refusal(await api.post("/v1/dispatch/explain", content="{}", headers=headers)) is None


async def test_a_delete_without_a_body_needs_no_content_type(api: httpx.AsyncClient) -> None:
    assert await refusal(await api.delete("/v1/nodes/x")) == (404, "UNKNOWN_NODE")


async def test_a_chunked_body_is_a_body(api: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    answer = await api.request("DELETE", "/v1/nodes/x", content=pieces())
    assert await refusal(answer) == (415, "JSON_REQUIRED")


async def test_an_empty_chunked_body_of_a_read_is_no_reason_to_refuse(api: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    assert await refusal(await api.request("GET", "/v1/nodes", content=pieces())) is None


@pytest.mark.parametrize("chunked", [False, True], ids=["stated length", "chunked"])
async def test_the_rest_of_a_body_over_the_limit_is_not_read(
    api: httpx.AsyncClient, *, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    content = pieces() if chunked else b"x" * 4 * 2**20
    answer = await api.post("/v1/claims", content=content, headers=JSON)
    assert await refusal(answer) == (413, "BODY_TOO_LARGE")


async def test_many_large_bodies_at_a_time_are_refused_and_one_later_is_not(
    service: RegistryService, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "SMALL_BODY_BYTES", 0)
    monkeypatch.setattr(auth, "MAX_BODIES_BYTES", 100)
    answering, going_on = 0, asyncio.Event()

    async def slow(*_: object, **__: object) -> None:
        nonlocal answering
        answering += 1
        await going_on.wait()

    monkeypatch.setattr(service, "cordon", slow)

    async def cordon() -> tuple[int, str] | None:
        return await refusal(await api.post("/v1/nodes/x/cordon", json={"reason": "r" * 26}))  # 40 bytes

    held = [asyncio.ensure_future(cordon()) for _ in range(2)]
    await until(lambda: answering == 2, what="two requests in progress")
    assert await cordon() == (503, "TOO_MANY_BODIES_OF_ALL")
    going_on.set()
    assert [await one for one in held] == [(404, "UNKNOWN_NODE")] * 2
    assert await cordon() == (404, "UNKNOWN_NODE")


async def test_small_bodies_are_read_whatever_large_ones_take(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_BODIES_BYTES", 0)
    assert (await api.post("/v1/nodes/x/cordon", json={"reason": "small"})).status_code == 404
    large = await api.post("/v1/nodes/x/cordon", json={"reason": "r" * 20_000})
    assert await refusal(large) == (503, "TOO_MANY_BODIES_OF_ALL")


async def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    head = f"POST /v1/claims HTTP/1.1\r\nHost: {api.base_url.host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 10\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await api.get("/healthz")).status_code == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "path", ["/v1/nodes/", "//v1/nodes", "/v1/nodes%2F", "/v1/claims/", "/v1/claims//renew"]
)
async def test_a_path_that_is_nearly_a_route_is_none(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.request("POST" if "renew" in path else "GET", f"{api.base_url}{path}", json={})
    assert answer.status_code in (404, 405)


async def test_a_path_that_is_no_utf8_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"{api.base_url}/v1/nodes/%FF")
    assert await refusal(answer) == (400, "INVALID_PATH")
