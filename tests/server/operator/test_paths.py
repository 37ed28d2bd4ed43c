from collections.abc import MutableMapping
from typing import Any

import pytest

from gpu_agent.server.operator.guard import App, Receive, Scope, Send
from gpu_agent.server.operator.paths import ExactPaths, spelled


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


async def outcome(scope: Scope) -> str:
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
    assert await outcome({"type": "http", "raw_path": b"/v1/nodes/%FF", "path": "?"}) == "400 INVALID_PATH ?"


async def test_the_application_reads_the_spelling() -> None:
    assert await outcome({"type": "http", "raw_path": b"/a%2Fb", "path": "/a/b"}) == "reached /a%2Fb"


async def test_what_is_no_http_request_is_handed_on() -> None:
    assert await outcome({"type": "lifespan"}) == "reached None"
