""""""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gpu_agent.server.api import auth as operator_guard
from gpu_agent.server.api.auth import App, Guard, Receive, Scope, Send
from gpu_agent.server.api.schemas import ExactPaths, spelled
from gpu_agent.server.http_headers import LOOPBACK_NAMES

OWN = "127.0.0.1:8081"


async def _receive() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def outcome(
    method: str,
    headers: dict[str, str],
    *,
    hosts: frozenset[str] | None = LOOPBACK_NAMES,
    taken: bool = True,
) -> str:
    said: list[str] = []

    async def send(_: MutableMapping[str, Any]) -> None:
        """Never used: these applications only note that they were called."""

    def noting(what: str) -> App:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            said.append(what)

        return app

    guard = Guard(
        noting("let through"),
        hosts=hosts,
        refuse=lambda status, code, _: noting(f"{status} {code}"),
        takes=lambda _: taken,
    )
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await guard({"type": "http", "method": method, "headers": raw}, _receive, send)
    (only,) = said
    return only


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "localhost:8081", "LOCALHOST", "[::1]:8081", "127.0.0.1"])
async def test_names_of_this_machine_are_ours(host: str) -> None:
    assert await outcome("GET", {"host": host}) == "let through"


@pytest.mark.parametrize("host", ["evil.example:8081", "127.0.0.1.evil.example", "", "[", "10.0.0.1:8081"])
async def test_a_name_rebound_to_this_machine_is_not_ours(host: str) -> None:
    assert await outcome("GET", {"host": host}) == "403 HOST_NOT_ALLOWED"


async def test_where_nobody_can_know_all_names_every_name_is_ours() -> None:
    assert await outcome("GET", {"host": "gpu-box.example"}, hosts=None) == "let through"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost"]
)
async def test_pages_of_another_origin_are_refused(origin: str) -> None:
    assert await outcome("GET", {"host": OWN, "origin": origin}) == "403 ORIGIN_NOT_ALLOWED"


async def test_our_own_page_is_let_through() -> None:
    assert await outcome("GET", {"host": OWN, "origin": f"http://{OWN}"}) == "let through"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_what_a_form_can_send_without_asking_is_refused(kind: str) -> None:
    headers = {"host": OWN, "content-type": kind, "content-length": "2"}
    assert await outcome("POST", headers) == "415 JSON_REQUIRED"


async def test_a_post_without_a_body_needs_the_header_too() -> None:
    assert await outcome("POST", {"host": OWN}) == "415 JSON_REQUIRED"


async def test_what_nothing_takes_is_let_through_to_be_told_so() -> None:
    assert await outcome("POST", {"host": OWN}, taken=False) == "let through"
    assert await outcome("POST", {"host": "evil.example"}, taken=False) == "403 HOST_NOT_ALLOWED"


async def test_json_is_let_through_whatever_its_charset() -> None:
    headers = {"host": OWN, "content-type": "Application/JSON; charset=utf-8", "content-length": "2"}
    assert await outcome("POST", headers) == "let through"


async def test_a_delete_without_a_body_needs_no_content_type() -> None:
    assert await outcome("DELETE", {"host": OWN}) == "let through"


async def test_a_chunked_body_is_a_body() -> None:
    assert await outcome("DELETE", {"host": OWN, "transfer-encoding": "chunked"}) == "415 JSON_REQUIRED"


async def test_a_body_is_handed_on_whole_and_what_comes_after_it_too() -> None:
    coming: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.request", "body": b"}", "more_body": False},
        {"type": "http.disconnect"},
    ]
    heard: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0)

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        heard.extend([await receive(), await receive()])

    async def send(_: MutableMapping[str, Any]) -> None:
        """Never used."""

    def refuse(status: int, code: str, detail: str) -> App:
        raise AssertionError((status, code, detail))

    headers = [(b"host", OWN.encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "headers": headers}
    await Guard(app, hosts=LOOPBACK_NAMES, refuse=refuse, takes=lambda _: True)(scope, receive, send)
    assert heard == [
        {"type": "http.request", "body": b"{}", "more_body": False},
        {"type": "http.disconnect"},
    ]


async def test_many_long_bodies_at_a_time_are_more_than_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_guard, "MOST_HELD_BYTES", 100)
    said: list[str] = []
    answers = asyncio.Event()

    async def send(_: MutableMapping[str, Any]) -> None:
        """Never used."""

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await answers.wait()
        said.append("answered")

    def refuse(status: int, code: str, _: str) -> App:
        async def refusing(_scope: Scope, _receive: Receive, _send: Send) -> None:
            said.append(f"{status} {code}")

        return refusing

    async def body_of_forty() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"x" * 40, "more_body": False}

    guard = Guard(app, hosts=None, refuse=refuse, takes=lambda _: False)
    scope = {"type": "http", "method": "POST", "headers": []}
    held = [asyncio.ensure_future(guard(scope, body_of_forty, send)) for _ in range(2)]
    await asyncio.sleep(0)
    await guard(scope, body_of_forty, send)
    assert said == ["413 BODIES_TOO_LARGE"]
    answers.set()
    await asyncio.wait(held)
    await guard(scope, body_of_forty, send)
    assert said[1:] == ["answered"] * 3


async def test_whoever_leaves_in_the_middle_of_a_body_is_not_answered() -> None:
    coming: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0)

    async def fail(*_: object) -> None:
        raise AssertionError("nobody is there to hear it")

    def refuse(status: int, code: str, detail: str) -> App:
        raise AssertionError((status, code, detail))

    guard = Guard(fail, hosts=None, refuse=refuse, takes=lambda _: False)
    await guard({"type": "http", "method": "POST", "headers": []}, receive, fail)


async def test_what_is_no_http_request_is_not_judged() -> None:
    reached: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope["type"])

    async def send(_: MutableMapping[str, Any]) -> None:
        """Never used."""

    def refuse(status: int, code: str, detail: str) -> App:
        raise AssertionError((status, code, detail))

    await Guard(app, hosts=LOOPBACK_NAMES, refuse=refuse, takes=lambda _: True)(
        {"type": "lifespan"}, _receive, send
    )
    assert reached == ["lifespan"]


@pytest.mark.parametrize(
    ("path", "spelling"),
    [
        (b"/v1/nodes", "/v1/nodes"),
        (b"/v1/%6Eodes", "/v1/nodes"),
        (b"/v1/claims/a%2fb", "/v1/claims/a%2Fb"),
        (b"/v1/claims/a%252Fb", "/v1/claims/a%252Fb"),
        (b"/v1/claims/a%0A", "/v1/claims/a%0A"),
        (b"/v1/claims/%C3%A4", "/v1/claims/%C3%A4"),
        (b"/v1/claims/a:b@c", "/v1/claims/a:b@c"),
        (b"/v1/claims/100%", "/v1/claims/100%25"),
        (b"//", "//"),
    ],
)
def test_a_path_has_one_spelling_in_which_each_part_stays_one(path: bytes, spelling: str) -> None:
    assert spelled(path) == spelling
    assert spelled(spelling.encode()) == spelling


async def paths_outcome(scope: Scope) -> str:
    said: list[str] = []

    def saying(what: str) -> App:
        async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
            said.append(f"{what} {scope.get('path')}")

        return app

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    async def send(_: MutableMapping[str, Any]) -> None:
        raise AssertionError

    exact = ExactPaths(saying("reached"), refuse=lambda status, code, _: saying(f"{status} {code}"))
    await exact(scope, receive, send)
    (only,) = said
    return only


async def test_what_is_no_text_is_refused() -> None:
    assert (
        await paths_outcome({"type": "http", "raw_path": b"/v1/nodes/%FF", "path": "?"})
        == "400 INVALID_PATH ?"
    )


async def test_the_application_reads_the_spelling() -> None:
    assert await paths_outcome({"type": "http", "raw_path": b"/a%2Fb", "path": "/a/b"}) == "reached /a%2Fb"


async def test_what_is_no_http_request_is_handed_on() -> None:
    assert await paths_outcome({"type": "lifespan"}) == "reached None"
