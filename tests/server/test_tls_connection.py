"""Encrypted ports of a true registry, over real sockets."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import ssl
import weakref
from pathlib import Path

import httpx
import pytest

from gpu_agent.runtime.certificate import read_file
from gpu_agent.server.limits import Limits
from gpu_agent.server.switchboard import RETRY_AFTER_SECONDS
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.server.tls_connection import NOT_ENCRYPTED, READ_BYTES, TlsConnection
from tests.authority import Authority
from tests.server.encrypted_ports import encrypted, ended, hello, node, operators, refusals, stranger
from tests.server.harness import beat, running, until

LATEST = b"\x03\x03"
QUICK = Limits(handshake_timeout_seconds=0.3, close_timeout_seconds=0.3)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_node_is_served_over_tls_up_to_the_longest_frame_and_the_goodbye(
    authority: Authority,
) -> None:
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        frame = json.dumps(beat(peer.node_id, junk=""))
        await peer.socket.send(frame.replace('"junk": ""', f'"junk": "{"x" * (2**20 - len(frame))}"'))
        await peer.register(node_id=peer.node_id)
        await service.forget(peer.node_id)
        assert await peer.closed() == (1001, "an operator removed its record")


async def test_a_node_that_says_goodbye_first_is_answered(authority: Authority) -> None:
    async with encrypted(authority) as service:
        async with node(service, authority.trusting()) as peer:
            await peer.become_ready()
            await peer.socket.close(1001, "leaving")
            assert peer.socket.close_code == 1001
        await until(lambda: service.size.connections == 0, what="nobody connected")


async def test_many_frames_in_few_records_are_all_handed_on(authority: Authority) -> None:
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        before = service.vitals.reception.beats
        for number in range(300):
            peer.socket.transport.pause_reading()
            await peer.socket.send(json.dumps(beat(peer.node_id, sequence=number)))
        peer.socket.transport.resume_reading()
        await until(lambda: service.vitals.reception.beats == before + 300, what="300 beats")


async def test_whoever_is_slow_with_a_handshake_is_counted_and_cut_off(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, _):
            await until(lambda: service.size.connections == 1, what="one connected")
            assert await ended(reader) == b""
        await until(lambda: service.size.connections == 0, what="nobody connected")
    assert "handshake_overdue" in [one.getMessage() for one in caplog.records]


async def test_a_client_that_stops_in_the_middle_of_its_hello_is_cut_off(authority: Authority) -> None:
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(hello(authority)[:100])
            assert await ended(reader) == b""
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(hello(authority))
            assert await ended(reader)  # what it would have to answer, and then no more


async def test_too_many_handshakes_at_a_time_cost_the_one_that_takes_longest(authority: Authority) -> None:
    async with (
        encrypted(authority, Limits(max_handshakes=3, close_timeout_seconds=0.3)) as service,
        contextlib.AsyncExitStack() as crowd,
    ):
        peers = [await crowd.enter_async_context(stranger(service.node_address.port)) for _ in range(6)]
        for reader, _ in peers[:3]:
            assert await ended(reader) == b""
        async with node(service, authority.trusting()) as honest:
            await honest.become_ready()


async def test_a_full_house_says_so_behind_tls_too(authority: Authority) -> None:
    async with (
        encrypted(authority, Limits(max_connections=1, close_timeout_seconds=0.3)) as service,
        node(service, authority.trusting()) as first,
    ):
        await first.register()
        async with httpx.AsyncClient(verify=authority.trusting(), trust_env=False) as client:
            answer = await client.get(
                f"https://localhost:{service.node_address.port}/ws/node", headers=UPGRADE
            )
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_SECONDS))


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


GARBAGE = [
    pytest.param(b"\x00" * 64, "wrong version number", id="zeros"),
    pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", "wrong version number", id="another protocol"),
    pytest.param(b"\x16" + LATEST + b"\xff\xff" + b"\x01" * 0xFFFF, "", id="an oversized record"),
    pytest.param(b"\x16" + LATEST + b"\x40\x00\x01\xff\xff\xff" + b"x" * 0x3FFC, "", id="an oversized hello"),
    pytest.param(b"\x17" + LATEST + b"\x00\x10" + b"x" * 16, "", id="data before a handshake"),
    pytest.param((b"\x16" + LATEST + b"\x00\x01\x01") * 3000, "", id="a hello in tiny records"),
]


@pytest.mark.parametrize(("said", "reason"), GARBAGE)
async def test_what_is_no_tls_ends_the_connection_and_is_told(
    authority: Authority, said: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(said)
            assert len(await ended(reader)) < 100
        await until(lambda: service.size.connections == 0, what="nobody connected")
        async with node(service, authority.trusting()) as honest:
            await honest.become_ready()
    told = [one.getMessage() for one in caplog.records if one.getMessage() != "offences_left_out"]
    assert {"tls_refused", "handshake_overdue"} & set(told)
    assert all(reason in fields["reason"] and fields["address"] for fields in refusals(caplog))


async def test_an_oversized_record_after_the_handshake_ends_the_connection(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        raw = peer.socket.transport.get_extra_info("socket")
        os.write(raw.fileno(), b"\x17" + LATEST + b"\xff\xff" + b"x" * 70_000)
        await until(lambda: service.size.connections == 0, what="nobody connected")
    (refusal,) = refusals(caplog)
    assert refusal["node_id"] == peer.node_id


async def test_whoever_speaks_http_in_the_clear_is_told_what_to_write(authority: Authority) -> None:
    async with encrypted(authority) as service, stranger(service.node_address.port) as (reader, writer):
        writer.write(b"GET /ws/node HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await ended(reader) == NOT_ENCRYPTED


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_socket_that_ends_without_tls_s_goodbye_is_an_end_like_any_other(
    authority: Authority, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        if how == "fin":
            raw = peer.socket.transport.get_extra_info("socket")
            raw.shutdown(1)
        else:
            peer.socket.transport.abort()
        await until(lambda: service.size.connections == 0, what="nobody connected")
    assert refusals(caplog) == []


async def test_a_peer_that_reads_nothing_is_cut_off_behind_tls_too(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        (number,) = service._switchboard._connections
        peer.socket.transport.pause_reading()
        async with asyncio.timeout(10):
            while service.size.connections:
                service._switchboard.send(number, "x" * 30_000)
                await asyncio.sleep(0)
    assert "slow_consumer_dropped" in [one.getMessage() for one in caplog.records]


async def test_a_connection_that_is_gone_leaves_nothing_for_the_collector(authority: Authority) -> None:
    async with encrypted(authority) as service:
        async with node(service, authority.trusting()) as peer:
            await peer.become_ready()
            (connection,) = service._switchboard._connections.values()
            assert isinstance(connection._transport, TlsConnection)
            left: list[weakref.ref[object]] = [
                weakref.ref(connection),
                weakref.ref(connection._transport),
                weakref.ref(connection._transport._tls),
            ]
            del connection
            gc.collect()
            gc.disable()
        try:
            await until(lambda: service.size.connections == 0, what="nobody connected")
            await until(lambda: not any(one() for one in left), what=f"nothing left of {left}")
        finally:
            gc.enable()


async def test_the_operators_port_is_encrypted_in_the_same_way(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    encryption = Encryption(TlsFiles(own=authority.issue()))
    async with running() as service, operators(service, encryption) as port:
        async with httpx.AsyncClient(verify=authority.trusting(), trust_env=False) as client:
            answers = [await client.get(f"https://localhost:{port}/v1/nodes") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        async with stranger(port) as (reader, writer):
            writer.write(b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await ended(reader) == NOT_ENCRYPTED
    assert [fields["reason"] for fields in refusals(caplog)] == ["http request"]


async def test_a_new_certificate_counts_for_new_connections_and_ends_none(
    authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue()
    encryption = Encryption(TlsFiles(own=own))
    async with (
        running(tls=encryption) as service,
        operators(service, encryption) as port,
        node(service, authority.trusting()) as early,
    ):
        await early.become_ready()
        another = Authority(tmp_path / "another")
        made = another.issue()
        assert made.key_file is not None
        assert own.key_file is not None
        made.key_file.replace(own.key_file)
        made.cert_file.replace(own.cert_file)
        assert await encryption.reload()
        async with node(service, another.trusting()) as late:
            await late.become_ready()
        with pytest.raises(ssl.SSLCertVerificationError):
            async with node(service, authority.trusting()):
                pass
        figures = await service.vitals.figures()
        assert figures.certificate_ends_at == read_file(own.cert_file).ends_at
        await early.register(node_id=early.node_id)
        async with httpx.AsyncClient(verify=another.trusting(), trust_env=False) as client:
            assert (await client.get(f"https://localhost:{port}/healthz")).status_code == 200


async def test_a_long_answer_passes_whole(authority: Authority) -> None:
    encryption = Encryption(TlsFiles(own=authority.issue()))
    async with (
        running() as service,
        operators(service, encryption) as port,
        httpx.AsyncClient(verify=authority.trusting(), trust_env=False) as client,
    ):
        document = (await client.get(f"https://localhost:{port}/openapi.json")).content
    assert len(document) > 4 * READ_BYTES
    assert json.loads(document)["openapi"]
