import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
import ssl
import threading
import weakref
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_agent.runtime.tasks import MAX_STUCK_THREADS
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import (
    OwnCertificate,
    RenewableContext,
    TlsFileError,
    client_context,
    server_context,
    show_renewed,
)
from gpu_agent.server import tls
from gpu_agent.server.limits import Limits
from gpu_agent.server.node_listener import RETRY_AFTER_SECONDS
from gpu_agent.server.tls import (
    NOT_ENCRYPTED,
    READ_BYTES,
    Encryption,
    RenewedCertificate,
    TlsConnection,
    TlsFiles,
)
from tests.authority import Authority
from tests.server.encrypted_ports import encrypted, ended, hello, node, operators, refusals, stranger
from tests.server.harness import heartbeat, running, until
from tests.waiting import patience


class Installed:
    """The certificate files of a registry, and how to replace them."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.own = OwnCertificate(folder / "registry.pem", folder / "registry.key")

    def put(self, made: OwnCertificate) -> None:
        assert made.key_file is not None
        assert self.own.key_file is not None
        made.key_file.replace(self.own.key_file)
        made.cert_file.replace(self.own.cert_file)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    made = Installed(tmp_path)
    made.put(made.authority.issue(to_days=60))
    return made


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [(one.getMessage(), vars(one)["fields"]) for one in caplog.records]


@pytest.fixture(autouse=True)
def _everything_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_reload_uses_a_renewed_certificate_and_logs_it(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    installed.put(installed.authority.issue(to_days=200.5))
    assert await encryption.reload()
    assert encryption.context is not before
    assert encryption.ends_at == read_certificate_file(installed.own.cert_file).ends_at
    fields = {"file": str(installed.own.cert_file), "days": 200, "pin": encryption.pin}
    assert logged(caplog) == [("certificate_loaded", fields)]
    assert encryption.pin == pin_of(read_certificate_file(installed.own.cert_file))


async def shown(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes, bytes]:
    """The certificates that both ends of a new connection show."""
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server) as listener:
        _, port = listener.sockets[0].getsockname()
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        of_server: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        of_client = await asyncio.wait_for(seen, patience(5))
        writer.close()
    return of_server, of_client


async def test_a_renewed_certificate_is_shown_by_contexts_in_use(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    ca = installed.authority.file
    server = server_context(installed.own, client_ca_file=ca)
    client = client_context(ca_file=ca, own=installed.own)
    renewed = RenewedCertificate(installed.own, lambda: show_renewed(installed.own, [server, client]))

    def in_the_file() -> bytes:
        return ssl.PEM_cert_to_DER_cert(installed.own.cert_file.read_text())

    assert await shown(server, client) == (in_the_file(), in_the_file())
    before = in_the_file()
    installed.put(installed.authority.issue(to_days=200.5))
    await renewed.reload()
    assert in_the_file() != before
    assert await shown(server, client) == (in_the_file(), in_the_file())
    assert [event for event, _ in logged(caplog)] == ["certificate_loaded"]
    await renewed.reload()
    assert len(logged(caplog)) == 1


async def test_an_unusable_renewal_changes_nothing_shown_and_is_logged_once(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_context(installed.own, client_ca_file=installed.authority.file)
    client = client_context(ca_file=installed.authority.file, own=installed.own)
    renewed = RenewedCertificate(installed.own, lambda: show_renewed(installed.own, [server, client]))
    before = await shown(server, client)
    assert installed.own.key_file is not None
    other = installed.authority.issue().key_file
    assert other is not None
    other.replace(installed.own.key_file)  # of another certificate
    await renewed.reload()
    await renewed.reload()
    assert [event for event, _ in logged(caplog)] == ["certificate_unusable"]
    assert await shown(server, client) == before


@pytest.mark.parametrize("days", [(-9.0, -1.0), (1.0, 90.0)], ids=["expired", "not yet valid"])
async def test_a_renewal_that_is_not_valid_now_is_not_shown(
    installed: Installed, caplog: pytest.LogCaptureFixture, days: tuple[float, float]
) -> None:
    shown: list[str] = []
    renewed = RenewedCertificate(installed.own, lambda: shown.append("used"))
    installed.put(installed.authority.issue(from_days=days[0], to_days=days[1]))
    await renewed.reload()
    assert not shown
    assert [event for event, _ in logged(caplog)] == ["certificate_unusable"]


async def test_a_key_whose_mode_is_corrected_is_read_again(installed: Installed) -> None:
    context = RenewableContext(lambda: client_context(ca_file=installed.authority.file, own=installed.own))
    renewed = RenewedCertificate(installed.own, context.renew)
    installed.put(installed.authority.issue())
    assert installed.own.key_file is not None
    installed.own.key_file.chmod(0o644)
    before = context.context
    await renewed.reload()
    assert context.context is before
    installed.own.key_file.chmod(0o600)
    await renewed.reload()
    assert context.context is not before


async def test_unchanged_files_are_read_again_only_by_force(installed: Installed) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    assert await encryption.reload(force=False)
    assert encryption.context is before
    assert await encryption.reload()
    assert encryption.context is not before


@pytest.mark.parametrize(
    "wrong", ["garbage", "component", "expired", "not valid yet", "gone", "readable for all"]
)
async def test_an_unusable_certificate_changes_nothing_and_is_logged_once(
    installed: Installed, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    assert installed.own.key_file is not None
    match wrong:
        case "garbage":
            installed.own.cert_file.write_text("nothing")
        case "component":
            installed.authority.issue().cert_file.replace(installed.own.cert_file)
        case "expired":
            installed.put(installed.authority.issue(from_days=-9, to_days=-1))
        case "not valid yet":
            installed.put(installed.authority.issue(from_days=1, to_days=90))
        case "gone":
            installed.own.cert_file.unlink()
        case _:
            installed.own.key_file.chmod(0o644)
            installed.own.cert_file.touch()
    for _ in range(3):
        await encryption.reload(force=False)
    assert encryption.context is before
    ((event, fields),) = logged(caplog)
    assert event == "certificate_unusable"
    assert fields["days"] == 59
    assert str(installed.own.cert_file.parent) in fields["problem"]
    problems = [encryption.problem]
    installed.put(installed.authority.issue())
    assert await encryption.reload(force=False)
    problems.append(encryption.problem)
    assert problems == [f"{fields['problem']} (the certificate before it serves on)", None]
    assert encryption.context is not before


async def test_a_certificate_that_is_not_valid_yet_is_named_at_the_start(
    installed: Installed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.01)
    installed.put(installed.authority.issue(from_days=1, to_days=90))
    encryption = Encryption(TlsFiles(own=installed.own))
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(encryption.watch())
        await until(lambda: logged(caplog) != [], what="what is wrong with it")
        watching.cancel()
    ((event, fields),) = logged(caplog)
    assert event == "certificate_unusable"
    assert "is not valid before " in fields["problem"]
    assert encryption.problem == fields["problem"]


async def test_the_files_are_checked_in_the_background(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.02)
    encryption = Encryption(TlsFiles(own=installed.own))
    before = encryption.context
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(encryption.watch())
        installed.put(installed.authority.issue())
        await until(lambda: encryption.context is not before, what="another certificate")
        watching.cancel()


@pytest.mark.parametrize(("to_days", "days"), [(13.5, 13), (0.5, 0), (-0.5, -1)])
async def test_an_expiry_that_is_near_or_past_is_logged_once_a_day(
    installed: Installed,
    to_days: float,
    days: int,
    *,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.001)
    installed.put(installed.authority.issue(to_days=to_days))
    encryption = Encryption(TlsFiles(own=installed.own))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await encryption.watch()
    assert logged(caplog) == [("certificate_expiring", {"file": str(installed.own.cert_file), "days": days})]


async def test_a_certificate_with_time_left_is_not_logged(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Encryption(TlsFiles(own=installed.own)).watch()
    assert logged(caplog) == []


async def test_a_disk_that_does_not_answer_leaves_the_certificate_in_use(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    monkeypatch.setattr(tls, "_READ_TIMEOUT_SECONDS", 0.0)
    assert not await encryption.reload()
    assert "does not answer" in logged(caplog)[0][1]["problem"]


async def test_a_disk_that_hangs_for_long_holds_a_few_threads_and_is_read_again_once_it_answers(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    encryption = Encryption(TlsFiles(own=installed.own))
    answers, looked_at = threading.Event(), tls._file_states
    with monkeypatch.context() as hung:
        hung.setattr(tls, "_READ_TIMEOUT_SECONDS", 0.01)
        hung.setattr(tls, "_file_states", lambda files: (answers.wait(patience(60)), looked_at(files))[1])
        assert not any([await encryption.reload(force=False) for _ in range(3 * MAX_STUCK_THREADS)])
        holding = [thread for thread in threading.enumerate() if thread.name == "tls-files, abandoned"]
        assert len(holding) == MAX_STUCK_THREADS
        answers.set()
    for thread in holding:
        await asyncio.to_thread(thread.join)
    assert await encryption.reload()


def test_client_certificates_are_part_of_the_context(installed: Installed) -> None:
    files = TlsFiles(own=installed.own, client_ca_file=installed.authority.file)
    assert Encryption(files).context.verify_mode is ssl.CERT_REQUIRED
    assert files.files == (*installed.own.files, installed.authority.file)


def test_a_start_without_a_certificate_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError, match="cannot be read"):
        Encryption(TlsFiles(own=OwnCertificate(tmp_path / "absent.pem")))


# Encrypted ports of a true registry, over real sockets.


LATEST = b"\x03\x03"
QUICK = Limits(handshake_timeout_seconds=0.3, close_timeout_seconds=0.3)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_node_is_served_over_tls_up_to_the_longest_frame_and_the_close_frame(
    authority: Authority,
) -> None:
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        frame = json.dumps(heartbeat(peer.node_id, junk=""))
        await peer.socket.send(frame.replace('"junk": ""', f'"junk": "{"x" * (2**20 - len(frame))}"'))
        await peer.register(node_id=peer.node_id)
        await service.remove(peer.node_id)
        assert await peer.closed() == (1001, "an operator removed its record")


async def test_a_node_that_closes_first_is_answered(authority: Authority) -> None:
    async with encrypted(authority) as service:
        async with node(service, authority.trusting()) as peer:
            await peer.become_ready()
            await peer.socket.close(1001, "leaving")
            assert peer.socket.close_code == 1001
        await until(lambda: service.size.connections == 0, what="no connection")


async def test_many_frames_in_few_records_are_all_handed_on(authority: Authority) -> None:
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        before = service.health.messages.heartbeats
        for number in range(300):
            peer.socket.transport.pause_reading()
            await peer.socket.send(json.dumps(heartbeat(peer.node_id, sequence=number)))
        peer.socket.transport.resume_reading()
        await until(lambda: service.health.messages.heartbeats == before + 300, what="300 heartbeats")


async def test_a_slow_handshake_is_counted_and_ended(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, _):
            await until(lambda: service.size.connections == 1, what="one connected")
            assert await ended(reader) == b""
        await until(lambda: service.size.connections == 0, what="no connection")
    assert "handshake_timed_out" in [one.getMessage() for one in caplog.records]


async def test_a_client_that_stops_in_the_middle_of_its_hello_is_disconnected(authority: Authority) -> None:
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(hello(authority)[:100])
            assert await ended(reader) == b""
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(hello(authority))
            assert await ended(reader)  # what it would have to answer, and then no more


async def test_of_too_many_handshakes_the_oldest_ends(authority: Authority) -> None:
    async with (
        encrypted(authority, Limits(max_handshakes=3, close_timeout_seconds=0.3)) as service,
        contextlib.AsyncExitStack() as crowd,
    ):
        peers = [await crowd.enter_async_context(stranger(service.node_address.port)) for _ in range(6)]
        for reader, _ in peers[:3]:
            assert await ended(reader) == b""
        async with node(service, authority.trusting()) as honest:
            await honest.become_ready()


async def test_a_full_registry_answers_503_behind_tls_too(authority: Authority) -> None:
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
async def test_input_that_is_no_tls_ends_the_connection_and_is_logged(
    authority: Authority, said: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority, QUICK) as service:
        async with stranger(service.node_address.port) as (reader, writer):
            writer.write(said)
            assert len(await ended(reader)) < 100
        await until(lambda: service.size.connections == 0, what="no connection")
        async with node(service, authority.trusting()) as honest:
            await honest.become_ready()
    events = [one.getMessage() for one in caplog.records if one.getMessage() != "violations_suppressed"]
    assert {"tls_handshake_failed", "handshake_timed_out"} & set(events)
    assert all(reason in fields["reason"] and fields["address"] for fields in refusals(caplog))


async def test_an_oversized_record_after_the_handshake_ends_the_connection(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        raw = peer.socket.transport.get_extra_info("socket")
        os.write(raw.fileno(), b"\x17" + LATEST + b"\xff\xff" + b"x" * 70_000)
        await until(lambda: service.size.connections == 0, what="no connection")
    (refusal,) = refusals(caplog)
    assert refusal["node_id"] == peer.node_id


async def test_plain_http_is_answered_with_the_right_scheme(authority: Authority) -> None:
    async with encrypted(authority) as service, stranger(service.node_address.port) as (reader, writer):
        writer.write(b"GET /ws/node HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await ended(reader) == NOT_ENCRYPTED


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_socket_that_ends_without_close_notify_is_an_ordinary_end(
    authority: Authority, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        if how == "fin":
            with peer.socket.transport.get_extra_info("socket").dup() as raw:
                raw.shutdown(socket.SHUT_WR)
        else:
            peer.socket.transport.abort()
        await until(lambda: service.size.connections == 0, what="no connection")
    assert refusals(caplog) == []


async def test_a_peer_that_reads_nothing_is_disconnected_behind_tls_too(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted(authority) as service, node(service, authority.trusting()) as peer:
        await peer.become_ready()
        (number,) = service._connections._by_number
        peer.socket.transport.pause_reading()
        async with asyncio.timeout(patience(10)):
            while service.size.connections:
                service._connections.send(number, "x" * 30_000)
                await asyncio.sleep(0)
    assert "slow_consumer_dropped" in [one.getMessage() for one in caplog.records]


async def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(authority: Authority) -> None:
    async with encrypted(authority) as service:
        async with node(service, authority.trusting()) as peer:
            await peer.become_ready()
            (connection,) = service._connections._by_number.values()
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
            await until(lambda: service.size.connections == 0, what="no connection")
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
        assert service.health.encryption is not None
        assert service.health.encryption.ends_at == read_certificate_file(own.cert_file).ends_at
        await early.register(node_id=early.node_id)
        async with httpx.AsyncClient(verify=another.trusting(), trust_env=False) as client:
            assert (await client.get(f"https://localhost:{port}/healthz")).status_code == 200


async def test_a_long_answer_arrives_whole(authority: Authority) -> None:
    encryption = Encryption(TlsFiles(own=authority.issue()))
    async with (
        running() as service,
        operators(service, encryption) as port,
        httpx.AsyncClient(verify=authority.trusting(), trust_env=False) as client,
    ):
        document = (await client.get(f"https://localhost:{port}/openapi.json")).content
    assert len(document) > 4 * READ_BYTES
    assert json.loads(document)["openapi"]
