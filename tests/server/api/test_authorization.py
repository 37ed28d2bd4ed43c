"""Every route of the true application, for every kind of caller; and what is logged of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from gpu_agent.registry.credentials import Role, allows
from gpu_agent.server.api.auth import (
    Authorization,
    Receive,
    Scope,
    Send,
    api_router,
    matching_route,
    needed_role,
    needs,
    refusals,
    role_of,
)
from gpu_agent.server.tokens import NewToken
from tests.server.api_harness import ALL_ROUTES, ROUTES, Caller, declared, filled, logged, refusing, serving
from tests.server.harness import running, until


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with running(auth_on=True) as service:
        yield Caller(service)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_each_route_lets_in_whom_it_declares_and_nobody_else(
    method: str, path: str, caller: Caller
) -> None:
    stated = declared(method, path)
    assert stated is not None
    public = stated == "public"
    assert public == (path in ("/healthz", "/readyz"))
    for nobody in ([], ["Bearer gpuo_00000000_unknown"]):
        answer = await caller.call(method, filled(path), *nobody)
        assert answer.status == (200 if public else 401)
        assert (b"www-authenticate" in answer.headers) == (not public)
    for role in Role:
        answer = await caller.call(method, filled(path), f"Bearer {await caller.token(role)}")
        enough = public or allows(role, Role(stated))
        assert answer.status == (200 if enough else 403)
        assert enough or f"role {stated}" in answer.detail


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nowhere"), ("PUT", "/v1/nodes"), ("GET", "/healthz/"), ("OPTIONS", "/v1/nodes")],
)
async def test_what_no_route_takes_is_told_to_whoever_may_read_and_to_nobody_else(
    method: str, path: str, caller: Caller
) -> None:
    assert (await caller.call(method, path)).status == 401
    assert (await caller.call(method, path, f"Bearer {await caller.token(Role.READ)}")).status == 200


def test_a_route_without_a_role_is_an_admins() -> None:
    async def forgotten() -> None:
        """Never called."""

    route = Route("/v1/forgotten", forgotten)
    scope = {"type": "http", "method": "GET", "path": "/v1/forgotten", "root_path": "", "headers": []}
    assert needed_role([route], scope) is Role.ADMIN


async def test_a_nodes_tokens_and_ended_ones_are_no_operators(caller: Caller) -> None:
    made = await caller.service.tokens.create_join()
    assert isinstance(made, NewToken)
    assert (await caller.call("GET", "/v1/nodes", f"Bearer {made.token}")).status == 401
    token = await caller.token(Role.ADMIN)
    assert (await caller.call("GET", "/v1/nodes", f"Bearer {token}")).status == 200
    await caller.service.tokens.revoke(token.split("_")[1])
    assert (await caller.call("GET", "/v1/nodes", f"Bearer {token}")).status == 401


async def test_an_answer_that_goes_on_ends_with_its_token(caller: Caller) -> None:
    token = await caller.token(Role.READ)
    said: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    async def stream(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"before", "more_body": True})
        await caller.service.tokens.revoke(token.split("_")[1])
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"after", "more_body": True})

    guard = Authorization(stream, routes=ALL_ROUTES, desk=caller.service.tokens, refuse=refusing)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/nodes", "root_path": "", "headers": headers}
    await guard(scope, receive, send)
    assert [(one["body"], one["more_body"]) for one in said[1:]] == [(b"before", True), (b"", False)]


async def test_tricks_with_headers_are_nobodys(caller: Caller) -> None:
    token = await caller.token(Role.ADMIN)
    for values in (
        [f"Bearer {token}", f"Bearer {token}"],
        [f"Basic {token}"],
        [token],
        [f"Bearer {token} x"],
        [f"Bearer {token}ÿ"],
        ["Bearer "],
        ["Bearer " + "x" * 60_000],
    ):
        answer = await caller.call("GET", "/v1/nodes", *values)
        assert answer.status == 401
        assert token not in answer.detail


async def test_with_auth_off_everybody_may_do_everything_and_nobody_is_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as service:
        with caplog.at_level(logging.INFO):
            answer = await Caller(service, auth_on=False).call("DELETE", "/v1/nodes/x", "Bearer whatever")
    assert answer.status == 200
    (call,) = logged(caplog, "operator_request")
    assert (call["token_id"], call["name"], call["path"]) == (None, None, "/v1/nodes/x")


async def test_what_is_no_http_request_is_not_judged(caller: Caller) -> None:
    reached: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope["type"])

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    async def send(_: MutableMapping[str, Any]) -> None:
        raise AssertionError

    guard = Authorization(app, routes=ALL_ROUTES, desk=caller.service.tokens, refuse=refusing)
    await guard({"type": "lifespan"}, receive, send)
    assert reached == ["lifespan"]


async def test_a_stream_of_events_ends_with_its_token_over_a_true_socket() -> None:
    async with running(auth_on=True) as service, serving(service) as client:
        made = await service.tokens.create_operator(Role.READ)
        assert isinstance(made, NewToken)
        headers = {"Authorization": f"Bearer {made.token}"}
        async with client.stream("GET", "/v1/events", headers=headers) as stream:
            assert stream.status_code == 200
            await service.tokens.revoke(made.token_id)
            async with asyncio.timeout(10):
                told = [line async for line in stream.aiter_lines()]
        assert not any("token_revoked" in line for line in told)
        await until(lambda: service._chronicle.listeners == 0, what="nobody listening any more")
        assert (await client.get("/v1/events", headers=headers)).status_code == 401


async def test_over_a_true_socket_no_route_but_the_public_ones_answers_whoever_shows_no_token() -> None:
    async with running(auth_on=True) as service, serving(service) as client:
        answers = {
            (method, path): (await client.request(method, filled(path), json={})).status_code
            for method, path in ROUTES
        }
    assert {route for route, status in answers.items() if status != 401} == {
        (method, path) for method, path in ROUTES if path in ("/healthz", "/readyz")
    }


async def test_each_call_that_may_change_something_is_logged_with_who_made_it(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    token = await caller.token(Role.OPERATE)
    with caplog.at_level(logging.INFO):
        await caller.call("POST", "/v1/nodes/x/drain", f"Bearer {token}")
        for method, path in (("GET", "/v1/nodes"), ("POST", "/v1/dispatch/explain")):
            await caller.call(method, path, f"Bearer {token}")
        await caller.call("DELETE", "/v1/nodes/x", f"Bearer {token}")
    who = {"token_id": token.split("_")[1], "name": "ann"}
    drained = {"method": "POST", "path": "/v1/nodes/x/drain", **who, "status": 200}
    refused = {"method": "DELETE", "path": "/v1/nodes/x", **who, "needed": "admin"}
    assert logged(caplog, "operator_request") == [drained]
    assert logged(caplog, "operator_refused") == [refused]
    assert token not in caplog.text


async def test_whoever_asks_on_for_what_its_role_does_not_allow_is_logged_once_a_minute(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    token, other = [await caller.token(Role.READ) for _ in range(2)]
    with caplog.at_level(logging.INFO):
        for number in range(3):
            await caller.call("DELETE", f"/v1/nodes/{number}", f"Bearer {token}")
        await caller.call("DELETE", "/v1/nodes/x", f"Bearer {other}")
        caller.stop()
    first, second = (one.split("_")[1] for one in (token, other))
    refused = logged(caplog, "operator_refused")
    assert [(one["token_id"], one["path"]) for one in refused] == [
        (first, "/v1/nodes/0"),
        (second, "/v1/nodes/x"),
    ]
    left_out = {"violation": "operator_refused", "kind": "admin", "origin": first, "count": 2}
    assert logged(caplog, "violations_suppressed") == [left_out]


async def test_who_has_no_token_of_ours_is_logged_once_a_minute_and_the_others_are_counted(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    guess = "gpuo_00000000_guess"
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await caller.call("GET", "/v1/nodes")
            await caller.call("GET", "/v1/nodes", f"Bearer {guess}")
        caller.stop()
    reasons = ["no token", "unknown token"]
    noted = [{"address": "10.0.0.9", "reason": reason} for reason in reasons]
    assert logged(caplog, "operator_unauthorized") == noted
    left_out = logged(caplog, "violations_suppressed")
    assert [(one["kind"], one["origin"], one["count"]) for one in left_out] == [
        (reason, "10.0.0.9", 2) for reason in reasons
    ]
    assert guess not in caplog.text


def test_a_route_says_its_role_and_that_it_wants_a_credential() -> None:
    assert needs("read") == {"x-role": "read", "security": [{"operatorToken": []}]}
    assert needs("public") == {"x-role": "public"}


def test_a_role_is_read_from_the_route_that_declares_it() -> None:
    router = api_router("nodes")

    @router.get("/a", openapi_extra=needs("admin"))
    async def declared() -> None: ...

    @router.get("/b")
    async def undeclared() -> None: ...

    assert [role_of(route) for route in router.routes] == ["admin", None]
    assert role_of(object()) is None
    names = {route.unique_id for route in router.routes if isinstance(route, APIRoute)}
    assert names == {"declared", "undeclared"}


def test_a_refusal_is_always_a_problem_document() -> None:
    (answer,) = refusals(404).values()
    assert list(answer["content"]) == ["application/problem+json"]


def test_a_request_is_taken_by_the_route_of_its_path_and_its_method() -> None:
    router = api_router("nodes")

    @router.get("/a")
    async def read_a() -> None: ...

    @router.post("/a")
    async def write_a() -> None: ...

    def taken(method: str, path: str) -> bool:
        return matching_route(router.routes, {"type": "http", "method": method, "path": path}) is not None

    assert matching_route(router.routes, {"type": "http", "method": "POST", "path": "/a"}) is router.routes[1]
    assert (taken("GET", "/a"), taken("PUT", "/a"), taken("GET", "/b")) == (True, False, False)
