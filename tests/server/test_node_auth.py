"""The door of a registry that runs, with auth on."""

import asyncio
import contextlib
import http
import logging
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import Address
from gpu_agent.server.http_headers import (
    LOOPBACK_NAMES,
    UNREADABLE,
    bearer_token,
    host_names,
    is_same_origin,
    names_this_host,
)
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService
from gpu_agent.server.websocket import Handshake
from gpu_agent.wire.api import NewToken
from tests.server.harness import Node, node, registration, running, url
from tests.waiting import patience

REQUEST = (
    b"GET /ws/node HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running(auth_on=True) as service:
        yield service


async def join_token(service: RegistryService, *, uses: int | None = 1) -> NewToken:
    made = await service.tokens.create_join(uses=uses)
    assert isinstance(made, NewToken)
    return made


async def refused(address: str, *values: str) -> tuple[int, str, str | None]:
    """A refused handshake's status, sentence and challenge."""
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address, proxy=None, additional_headers=[("Authorization", one) for one in values])
    response = refusal.value.response
    return response.status_code, response.body.decode(), response.headers.get("WWW-Authenticate")


async def test_a_handshake_without_a_token_is_401_with_the_next_step(service: RegistryService) -> None:
    status, sentence, challenge = await refused(url(service))
    assert (status, challenge) == (http.HTTPStatus.UNAUTHORIZED, "Bearer")
    assert "gpu-agent registry token create" in sentence


async def test_an_unknown_a_revoked_and_an_expired_token_are_401(service: RegistryService) -> None:
    revoked = await join_token(service)
    await service.tokens.revoke(revoked.token_id)
    expired = await service.tokens.create_join(ttl_seconds=0.01)
    assert isinstance(expired, NewToken)
    await asyncio.sleep(0.02)
    unknown = f"{revoked.token[:-1]}{'A' if revoked.token[-1] != 'A' else 'B'}"
    for token in (unknown, revoked.token, expired.token):
        status, sentence, challenge = await refused(url(service), f"Bearer {token}")
        assert (status, challenge) == (http.HTTPStatus.UNAUTHORIZED, "Bearer")
        assert token not in sentence


async def test_an_operators_token_is_403(service: RegistryService) -> None:
    made = await service.tokens.create_operator(Role.ADMIN)
    assert isinstance(made, NewToken)
    status, sentence, _ = await refused(url(service), f"Bearer {made.token}")
    assert (status, "join token" in sentence) == (http.HTTPStatus.FORBIDDEN, True)


async def test_a_join_token_is_accepted_and_then_the_node_token_that_it_brings(
    service: RegistryService,
) -> None:
    made = await join_token(service)
    async with node(service, token=made.token) as first:
        ack = await first.register()
    async with node(service, token=ack["node_token"]) as again:
        back = await again.register()
    assert back["node_id"] == ack["node_id"]
    assert ack["node_token"].startswith("gpun_")
    assert "node_token" not in back


async def test_the_query_may_carry_the_token_of_an_older_node(service: RegistryService) -> None:
    made = await join_token(service)
    async with connect(url(service, f"/ws/node?token={made.token}"), proxy=None) as socket:
        assert (await Node(socket).register())["node_token"]


async def test_the_header_goes_before_the_query(service: RegistryService) -> None:
    made = await join_token(service)
    target = url(service, f"/ws/node?token={made.token}")
    assert (await refused(target, "Bearer gpuj_00000000_x"))[0] == http.HTTPStatus.UNAUTHORIZED


async def test_a_join_token_that_is_used_up_is_403(service: RegistryService) -> None:
    made = await join_token(service)
    async with node(service, token=made.token) as first:
        await first.become_ready()
        status, sentence, _ = await refused(url(service), f"Bearer {made.token}")
    assert (status, "used up" in sentence) == (http.HTTPStatus.FORBIDDEN, True)


async def test_a_join_token_revoked_after_the_handshake_registers_no_node(
    service: RegistryService,
) -> None:
    made = await join_token(service)
    async with node(service, token=made.token) as late:
        await service.tokens.revoke(made.token_id)
        await late.send(registration())
        assert (await late.receive())["code"] == "UNAUTHORIZED"
        assert await late.closed() == (1008, "UNAUTHORIZED")


async def test_a_node_token_rotated_at_once_ends_the_session_and_is_not_valid_any_more(
    service: RegistryService,
) -> None:
    made = await join_token(service)
    async with node(service, token=made.token) as joined:
        token = (await joined.register())["node_token"]
        assert await service.tokens.rotate(joined.node_id, revoke_now=True) is None
        assert (await joined.receive_type("node_error"))["code"] == "UNAUTHORIZED"
        assert await joined.closed() == (1008, "UNAUTHORIZED")
    assert (await refused(url(service), f"Bearer {token}"))[0] == http.HTTPStatus.UNAUTHORIZED


async def test_a_full_registry_answers_503_before_it_checks_a_credential() -> None:
    limits = Limits(max_connections=1, close_timeout_seconds=0.2)
    async with running(auth_on=True, limits=limits) as service:
        made = await join_token(service)
        async with node(service, token=made.token):
            assert (await refused(url(service)))[0] == http.HTTPStatus.SERVICE_UNAVAILABLE


async def test_with_auth_off_a_presented_token_is_ignored() -> None:
    async with running() as service, node(service, token="whatever it is") as visitor:
        assert "node_token" not in await visitor.register()


TRICKS = {
    "two headers": b"Authorization: Bearer %s\r\nauthorization: Bearer %s\r\n",
    "another scheme": b"Authorization: Basic %s\r\n",
    "no scheme": b"Authorization: %s\r\n",
    "no token": b"Authorization: Bearer\r\n",
    "two words": b"Authorization: Bearer %s x\r\n",
    "a long one": b"Authorization: Bearer %s" + b"x" * 4000 + b"\r\n",
    "too long a line": b"Authorization: Bearer %s" + b"x" * 9000 + b"\r\n",
    "bytes": b"Authorization: Bearer %s\xff\xfe\r\n",
    "a NUL": b"Authorization: Bearer %s\x00\r\n",
    "a folded line": b"Authorization: Bearer\r\n %s\r\n",
    "a space before the colon": b"Authorization : Bearer %s\r\n",
    "many headers": b"X: y\r\n" * 200 + b"Authorization: Bearer %s\r\n",
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
async def test_malformed_headers_authenticate_no_peer_and_log_no_secret(
    service: RegistryService, trick: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    made = await join_token(service)
    address = service.node_address
    with caplog.at_level(logging.DEBUG):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(REQUEST + trick.replace(b"%s", made.token.encode()) + b"\r\n")
        async with asyncio.timeout(patience(5)):
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
        writer.close()
        async with node(service, token=made.token) as honest:
            assert (await honest.register())["node_token"]
    assert answer.split(b"\r\n", 1)[0] in (
        b"",
        b"HTTP/1.1 401 Unauthorized",
        b"HTTP/1.1 431 Request Header Fields Too Large",
    )
    secret = made.token.split("_", 2)[2]
    ours = [record for record in caplog.records if record.name.startswith("gpu_agent")]
    assert all(secret not in f"{record.getMessage()} {record.__dict__}" for record in ours)


async def answered(service: RegistryService, *, origin: str, host: str) -> bytes:
    """What a browser that shows a page of this origin receives first."""
    address = service.node_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        said = REQUEST.replace(b"Host: x", f"Host: {host}".encode()) + f"Origin: {origin}\r\n\r\n".encode()
        writer.write(said)
        return await asyncio.wait_for(reader.readline(), patience(5))
    finally:
        writer.close()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:3000", "http://["])
async def test_with_auth_off_a_web_page_of_another_origin_is_refused(origin: str) -> None:
    async with running() as service:
        assert b" 403 " in await answered(service, origin=origin, host=str(service.node_address))
        async with node(service) as ours:
            await ours.register()


async def test_with_auth_off_a_page_whose_name_is_rebound_to_this_machine_is_refused() -> None:
    async with running() as service:
        evil, ours = (f"{name}:{service.node_address.port}" for name in ("evil.example", "localhost"))
        assert b" 403 " in await answered(service, origin=f"http://{evil}", host=evil)
        assert b" 101 " in await answered(
            service, origin=f"http://{ours}", host=ours
        )  # as some libraries write it


TOKEN = "gpuj_0123abcd_" + "A" * 43


def test_without_a_header_the_query_may_carry_the_token() -> None:
    assert Handshake(f"/ws/node?a=b&token={TOKEN}").token == TOKEN


def test_the_header_goes_before_the_query_even_when_it_is_unreadable() -> None:
    assert Handshake("/ws/node?token=query", (f"Bearer {TOKEN}",)).token == TOKEN
    assert Handshake(f"/ws/node?token={TOKEN}", ("Basic eDp5",)).token == UNREADABLE


@pytest.mark.parametrize("target", ["/ws/node", "/ws/node?", "/ws/node?a=b", "/ws/node?xtoken=1"])
def test_a_handshake_without_a_token_has_none(target: str) -> None:
    assert Handshake(target).token is None


@pytest.mark.parametrize(
    "query",
    [
        "token=",
        "token=a&token=b",
        "token=%00",
        "token=%ff%fe",
        "token=a%0d%0aX: y",
        "token=" + "x" * 9000,
        "&".join(["token=a"] + ["b=c"] * 100),
        "token=a+b",
    ],
)
def test_a_malformed_query_is_an_unreadable_token(query: str) -> None:
    assert Handshake(f"/ws/node?{query}").token == UNREADABLE


def test_the_repr_of_a_handshake_holds_no_token() -> None:
    shown = Handshake(f"/ws/node?token={TOKEN}", (f"Bearer {TOKEN}",))
    assert shown.path == "/ws/node"
    assert TOKEN not in repr(shown)


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}  ", f"Bearer\t{TOKEN}"]
)
def test_a_bearer_header_carries_the_token_however_the_scheme_is_spelled(value: str) -> None:
    assert bearer_token((value,)) == TOKEN


def test_no_header_is_no_token() -> None:
    assert bearer_token(()) is None


@pytest.mark.parametrize(
    "values",
    [
        ("Bearer a", "Bearer b"),
        ("Bearer a", "Bearer a"),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (TOKEN,),
        ("Basic dXNlcjpwYXNz",),
        ("Bearer two words",),
        ("Bearer tök",),
        ("Bearer \x00",),
        ("Bearer \x7f",),
        ("Bearer " + "x" * 9000,),
        ("Bearer, Bearer a",),
        ("Bearer\u00a0a",),
    ],
)
def test_a_malformed_header_is_an_unreadable_token(values: tuple[str, ...]) -> None:
    assert bearer_token(values) == UNREADABLE


def test_host_names_are_known_on_loopback_only() -> None:
    assert host_names(Address("127.0.0.7", 80)) == LOOPBACK_NAMES | {"127.0.0.7"}
    assert host_names(Address("10.0.0.1", 80)) is None


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "LOCALHOST", "[::1]:8081"])
def test_a_host_names_this_registry_whatever_its_port(host: str) -> None:
    assert names_this_host(host, LOOPBACK_NAMES)


@pytest.mark.parametrize("host", ["evil.example:8081", "127.0.0.1.evil.example", "", "["])
def test_another_host_does_not_name_this_registry_where_names_are_known(host: str) -> None:
    assert not names_this_host(host, LOOPBACK_NAMES)
    assert names_this_host(host, None)


def test_a_page_has_the_origin_of_the_host_and_port_that_served_it() -> None:
    assert is_same_origin("http://Box:8081", "box:8081")


@pytest.mark.parametrize("origin", ["http://box", "http://box:3000", "http://other:8081", "null", "http://["])
def test_a_page_of_another_host_or_port_has_another_origin(origin: str) -> None:
    assert not is_same_origin(origin, "box:8081")
