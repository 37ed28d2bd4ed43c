"""Who may use which route, on the real application, and what the log says of each caller."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from fastapi.routing import APIRoute

from gpu_agent.registry.tokens import Role, allows
from gpu_agent.server import event_log
from gpu_agent.server.api import auth
from gpu_agent.server.api.auth import needed_role
from gpu_agent.server.api.routing import api_router, needs, refusals
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.api_harness import (
    ROUTES,
    bearer,
    declared_role,
    filled,
    logged,
    operator_token,
    problem,
    serving,
)
from tests.server.harness import running, until
from tests.waiting import patience

PUBLIC = ("/healthz", "/readyz", "/docs", "/docs/page.css", "/docs/page.js")
DENIED = (401, 403)


@pytest.fixture
async def secured() -> AsyncIterator[RegistryService]:
    async with running(auth_on=True) as service:
        yield service


@pytest.fixture
async def client(secured: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(secured) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_each_route_admits_the_role_that_it_declares_and_no_smaller_one(
    method: str, path: str, secured: RegistryService, client: httpx.AsyncClient
) -> None:
    role = declared_role(method, path)
    assert role is not None
    assert (role == "public") == (path in PUBLIC)
    for headers in ({}, bearer("gpuo_00000000_unknown")):
        answer = await client.request(method, filled(path), json={}, headers=headers)
        assert (answer.status_code == 401) == (role != "public")
        assert ("www-authenticate" in answer.headers) == (role != "public")
    for held in Role:
        headers = bearer(await operator_token(secured, held))
        answer = await client.request(method, filled(path), json={}, headers=headers)
        admitted = role == "public" or allows(held, Role(role))
        assert (answer.status_code in DENIED) != admitted
        assert admitted or f"role {role}" in problem(answer)["detail"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("PUT", "/v1/nodes", 405)])
async def test_only_a_caller_with_a_token_learns_which_paths_there_are(
    method: str, path: str, status: int, secured: RegistryService, client: httpx.AsyncClient
) -> None:
    refused = await client.request(method, path)
    assert (refused.status_code, problem(refused)["code"]) == (401, "UNAUTHORIZED")
    unknown = await client.request(method, path, headers=bearer("gpuo_x"))
    for one in (refused, unknown):
        assert "`gpu-agent registry token create --operator ROLE`" in problem(one)["detail"]
    headers = bearer(await operator_token(secured, Role.READ))
    assert (await client.request(method, path, headers=headers)).status_code == status


def test_a_route_without_a_role_needs_an_admin() -> None:
    router = api_router("nodes")

    @router.get("/a", openapi_extra=needs("operate"))
    async def declared() -> None: ...

    @router.get("/b")
    async def forgotten() -> None: ...

    @router.get("/c", openapi_extra=needs("public"))
    async def public() -> None: ...

    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    assert [needed_role(route) for route in routes] == [Role.OPERATE, Role.ADMIN, None]


def test_a_route_declares_its_role_and_its_credential() -> None:
    assert needs("read") == {"x-role": "read", "security": [{"operatorToken": []}]}
    assert needs("public") == {"x-role": "public"}


def test_a_refusal_is_always_a_problem_document() -> None:
    (answer,) = refusals(404).values()
    assert list(answer["content"]) == ["application/problem+json"]


async def test_a_node_token_and_a_revoked_token_are_no_operator_tokens(
    secured: RegistryService, client: httpx.AsyncClient
) -> None:
    made = await secured.tokens.create_join()
    assert isinstance(made, NewToken)
    assert (await client.get("/v1/nodes", headers=bearer(made.token))).status_code == 401
    token = await operator_token(secured, Role.ADMIN)
    assert (await client.get("/v1/nodes", headers=bearer(token))).status_code == 200
    await secured.tokens.revoke(token.split("_")[1])
    assert (await client.get("/v1/nodes", headers=bearer(token))).status_code == 401


async def test_a_malformed_authorization_header_is_no_token(
    secured: RegistryService, client: httpx.AsyncClient
) -> None:
    token = await operator_token(secured, Role.ADMIN)
    for values in (
        [f"Bearer {token}", f"Bearer {token}"],
        [f"Basic {token}"],
        [token],
        [f"Bearer {token} x"],
        [f"Bearer {token}ÿ"],
        ["Bearer"],
        ["Bearer " + "x" * 20_000],
    ):
        headers = [(b"authorization", value.encode("latin-1")) for value in values]
        answer = await client.get("/v1/nodes", headers=headers)
        assert answer.status_code == 401
        assert token not in answer.text


async def test_a_body_of_a_caller_without_a_token_is_not_read(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/claims", content=b"{")).status_code == 401
    assert (await client.post("/v1/claims", content=b"x" * 2**21)).status_code == 401


async def test_with_auth_off_every_caller_may_do_everything_and_the_log_names_none(
    service: RegistryService, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert not service.auth_on
    with caplog.at_level(logging.INFO):
        answer = await api.delete("/v1/nodes/x", headers=bearer("whatever"))
    assert answer.status_code == 404
    (call,) = logged(caplog, "operator_request")
    assert (call["token_id"], call["name"], call["path"]) == (None, None, "/v1/nodes/x")


async def test_a_stream_of_events_ends_with_its_token(
    secured: RegistryService, client: httpx.AsyncClient
) -> None:
    token = await operator_token(secured, Role.READ)
    async with client.stream("GET", "/v1/events", headers=bearer(token)) as stream:
        assert stream.status_code == 200
        await secured.tokens.revoke(token.split("_")[1])
        async with asyncio.timeout(patience(10)):
            lines = [line async for line in stream.aiter_lines()]
    assert not any("token_revoked" in line for line in lines)
    await until(lambda: secured.event_log.subscribers == 0, what="no subscriber left")
    assert (await client.get("/v1/events", headers=bearer(token))).status_code == 401


async def test_each_call_that_may_change_something_is_logged_with_its_token(
    secured: RegistryService, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    token = await operator_token(secured, Role.OPERATE)
    with caplog.at_level(logging.INFO):
        for method, path in (
            ("POST", "/v1/nodes/x/drain"),
            ("GET", "/v1/nodes"),
            ("POST", "/v1/dispatch/explain"),
            ("DELETE", "/v1/nodes/x"),
        ):
            await client.request(method, path, json={}, headers=bearer(token))
        await client.post("/v1/nodes/x/drain", json={"surprise": 1}, headers=bearer(token))
        await client.post("/v1/nodes/x/drain", content="{}", headers=bearer(token))
    caller = {"token_id": token.split("_")[1], "name": "ann"}
    drain = {"method": "POST", "path": "/v1/nodes/x/drain", **caller}
    refused = {"method": "DELETE", "path": "/v1/nodes/x", **caller, "needed": "admin"}
    assert logged(caplog, "operator_request") == [{**drain, "status": status} for status in (404, 422, 415)]
    assert logged(caplog, "operator_refused") == [refused]
    assert token not in caplog.text


async def test_a_call_that_fails_inside_is_logged_as_failed(
    service: RegistryService,
    api: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(service, "resume", fail)
    with caplog.at_level(logging.INFO):
        assert (await api.post("/v1/nodes/x/resume", json={})).status_code == 500
    assert [call["status"] for call in logged(caplog, "operator_request")] == [500]


async def test_a_token_with_too_small_a_role_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        async with running(auth_on=True) as service, serving(service) as client:
            token, other = [await operator_token(service, Role.READ) for _ in range(2)]
            for number in range(3):
                await client.delete(f"/v1/nodes/{number}", headers=bearer(token))
            await client.delete("/v1/nodes/x", headers=bearer(other))
    first, second = (one.split("_")[1] for one in (token, other))
    assert [(one["token_id"], one["path"]) for one in logged(caplog, "operator_refused")] == [
        (first, "/v1/nodes/0"),
        (second, "/v1/nodes/x"),
    ]
    suppressed = {"violation": "operator_refused", "kind": "admin", "origin": first, "count": 2}
    assert logged(caplog, "violations_suppressed") == [suppressed]


async def test_a_caller_without_a_valid_token_is_logged_once_a_minute_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guess = "gpuo_00000000_guess"
    with caplog.at_level(logging.INFO):
        async with running(auth_on=True) as service, serving(service) as client:
            for _ in range(3):
                await client.get("/v1/nodes")
                await client.get("/v1/nodes", headers=bearer(guess))
    reasons = ["no token", "unknown token"]
    noted = [{"address": "127.0.0.1", "reason": reason} for reason in reasons]
    assert logged(caplog, "operator_unauthorized") == noted
    suppressed = logged(caplog, "violations_suppressed")
    assert [(one["kind"], one["origin"], one["count"]) for one in suppressed] == [
        (reason, "127.0.0.1", 2) for reason in reasons
    ]
    assert guess not in caplog.text


async def test_the_address_that_a_client_claims_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with running(auth_on=True) as service, serving(service) as client:
        for place in ("10.0.0.1", "10.0.0.2", "not an address"):
            claimed = {"x-forwarded-for": place, "forwarded": f"for={place}"}
            assert (await client.get("/v1/nodes", headers=claimed)).status_code == 401
    assert logged(caplog, "operator_unauthorized") == [{"address": "127.0.0.1", "reason": "no token"}]


async def test_large_bodies_of_one_token_keep_no_other_token_out(
    secured: RegistryService, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "SMALL_BODY_BYTES", 0)
    monkeypatch.setattr(auth, "MAX_BODIES_OF_ONE_BYTES", 100)
    answering, going_on = 0, asyncio.Event()

    async def slow(*_: object, **__: object) -> None:
        nonlocal answering
        answering += 1
        await going_on.wait()

    monkeypatch.setattr(secured, "cordon", slow)
    greedy, other = [bearer(await operator_token(secured, Role.OPERATE)) for _ in range(2)]

    async def cordon(headers: dict[str, str]) -> tuple[int, str]:
        answer = await client.post("/v1/nodes/x/cordon", json={"reason": "r" * 26}, headers=headers)
        return answer.status_code, problem(answer)["code"]

    held = [asyncio.ensure_future(cordon(greedy)) for _ in range(2)]
    await until(lambda: answering == 2, what="two requests in progress")
    assert await cordon(greedy) == (429, "TOO_MANY_BODIES")
    admitted = asyncio.ensure_future(cordon(other))
    await until(lambda: answering == 3, what="the other token's request")
    going_on.set()
    assert [await one for one in (*held, admitted)] == [(404, "UNKNOWN_NODE")] * 3


async def test_one_token_that_follows_the_events_too_often_leaves_room_for_others(
    secured: RegistryService, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MOST_STREAMS_OF_ONE", 2)
    greedy, other = [bearer(await operator_token(secured, Role.READ)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for headers in (greedy, greedy):
            answer = await stack.enter_async_context(client.stream("GET", "/v1/events", headers=headers))
            assert answer.status_code == 200
        refused = await client.get("/v1/events", headers=greedy)
        assert (refused.status_code, problem(refused)["code"]) == (429, "TOO_MANY_STREAMS_OF_TOKEN")
        answer = await stack.enter_async_context(client.stream("GET", "/v1/events", headers=other))
        assert answer.status_code == 200
