"""SIGTERM ends a real agent within five seconds, whatever it is in the middle of."""

import base64
import contextlib
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.bare_registry import ACK
from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, eventually, free_port
from tests.waiting import patience

pytestmark = pytest.mark.e2e


class _Deaf:
    """A peer on 127.0.0.1 that takes one connection, says its piece and never listens again."""

    def __init__(self, listener: socket.socket, piece: Callable[[bytes], bytes]) -> None:
        port = listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/ws/node"
        self.has_spoken = threading.Event()
        self._listener = listener
        self._piece = piece
        threading.Thread(target=self._speak, daemon=True).start()
        self._held: socket.socket | None = None

    def _speak(self) -> None:
        with contextlib.suppress(OSError):
            self._held, _ = self._listener.accept()
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += self._held.recv(65536)
            self._held.sendall(self._piece(request))
            self.has_spoken.set()

    def close(self) -> None:
        if self._held is not None:
            self._held.close()


@contextmanager
def _deaf(piece: Callable[[bytes], bytes]) -> Iterator[_Deaf]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = _Deaf(listener, piece)
        try:
            yield peer
        finally:
            peer.close()


def _nothing(_: bytes) -> bytes:
    return b""


def _half_a_handshake(_: bytes) -> bytes:
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso"


def _handshake(request: bytes) -> bytes:
    key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
    proof = hashlib.sha1(key.split()[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False)
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(proof.digest()) + b"\r\n\r\n"
    )


def _handshake_and_ack(request: bytes) -> bytes:
    text = json.dumps(ACK).encode()
    return _handshake(request) + b"\x81\x7e" + len(text).to_bytes(2) + text


def _ends_within_five_seconds(agent: Agent) -> None:
    asked = time.monotonic()
    agent.send(signal.SIGTERM)
    assert agent.wait(patience(8)) == 0, agent.output()
    assert time.monotonic() - asked < 5
    assert agent.events("agent_ended"), agent.output()
    assert not agent.events("task_crashed")


@pytest.mark.parametrize("piece", [_nothing, _half_a_handshake], ids=["silent", "half a handshake"])
def test_while_the_handshake_is_not_answered(tmp_path: Path, piece: Callable[[bytes], bytes]) -> None:
    with _deaf(piece) as peer, Agent(peer.url, tmp_path) as agent:
        assert peer.has_spoken.wait(patience(10)), agent.output()
        _ends_within_five_seconds(agent)


def test_while_no_connection_comes_up(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # the backlog is full now: what knocks is not let in and not turned away
            knocking = stack.enter_context(socket.socket())
            knocking.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                knocking.connect(full.getsockname())
        url = f"ws://127.0.0.1:{full.getsockname()[1]}/ws/node"
        agent = stack.enter_context(Agent(url, tmp_path))

        def knocks() -> bool:
            return any(
                one.status == psutil.CONN_SYN_SENT for one in psutil.Process(agent.pid).net_connections()
            )

        eventually(knocks, within_seconds=10, what="a connection on its way")
        _ends_within_five_seconds(agent)


def test_while_it_backs_off(tmp_path: Path) -> None:
    with Agent(f"ws://127.0.0.1:{free_port()}/ws/node", tmp_path) as agent:
        agent.await_event("session_backing_off")
        _ends_within_five_seconds(agent)


def test_while_it_waits_for_a_gpu(tmp_path: Path) -> None:
    environment = FakeNvml(tmp_path, gpus=0).environment()
    url = f"ws://127.0.0.1:{free_port()}/ws/node"
    with Agent(url, tmp_path / "state", simulate=None, environment=environment) as agent:
        agent.await_event("waiting_for_gpu", why="no usable GPU to declare")
        _ends_within_five_seconds(agent)


def test_while_it_awaits_an_ack(tmp_path: Path) -> None:
    with _deaf(_handshake) as peer, Agent(peer.url, tmp_path) as agent:
        assert peer.has_spoken.wait(patience(10)), agent.output()
        _ends_within_five_seconds(agent)


def test_while_the_driver_hangs_and_the_registry_does_not_read(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    (tmp_path / "agent.toml").write_text("probe_interval_seconds = 0.1\n[advanced]\ndeadline_seconds = 0.5\n")
    configured = ("--config", str(tmp_path / "agent.toml"))
    with (
        _deaf(_handshake_and_ack) as peer,
        Agent(
            peer.url, tmp_path / "state", *configured, simulate=None, environment=fake.environment()
        ) as agent,
    ):
        agent.await_event("node_registered")
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "0")
        agent.await_event("gpu_reading_missed")
        _ends_within_five_seconds(agent)
        fake.unset("hang", "nvmlDeviceGetUtilizationRates", "0")  # lets the child go that was left behind
