"""The attacker's list, the part of TLS on the registry's side: what may be done to its encrypted ports.

One registry with an honest node in it; each attack goes to both ports, and the node must not notice.
"""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpu_agent.runtime.tls.contexts import client_context
from tests.authority import Authority
from tests.e2e.encrypted import Encrypted
from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),
]

RECORD = b"\x17\x03\x03"
MOST_MEMORY_MB = 300
WINDOWS = 2
"""Of a minute, that the attacks and their end may touch."""


class Besieged:
    """A registry that lets in who has no certificate, and no one who has a wrong one."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.place = Encrypted(folder, running)
        self.place.trust(self.place.authority)
        self.clients = Authority(folder / "clients")
        self.registry: Registry = self.place.registry(
            "--tls-client-ca-file", str(self.clients.file), "--tls-client-auth", "optional"
        )
        self.ports = (self.registry.node_port, int(self.registry.api.rsplit(":", 1)[1]))
        self.place.make_join_token()
        self.agent: Agent = self.place.agent(self.registry.node_url, "honest")
        (node,) = self.place.await_ready()
        self.node_id = str(node["node_id"])

    def client(self) -> ssl.SSLContext:
        return client_context(ca_file=self.place.authority.file, own=None)

    def connected(self, port: int) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", port))
        opened.settimeout(10)
        return opened

    @contextlib.contextmanager
    def shaken(self, port: int, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
        """A peer whose handshake is over."""
        with (
            self.connected(port) as opened,
            (context or self.client()).wrap_socket(opened, server_hostname="localhost") as encrypted,
        ):
            yield encrypted

    def assert_cut_off(self, opened: socket.socket) -> None:
        """The first answer, if any, is short."""
        heard = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := opened.recv(65536):
                heard += piece
        assert len(heard) < 1000

    def assert_that_nobody_noticed(self) -> None:
        changes = self.registry.events("node_status_changed")
        assert [one["to"] for one in changes if one["node_id"] == self.node_id] == ["registering", "ready"]
        assert self.registry.events("node_disconnected") == []
        assert self.agent.events("session_backing_off") == []
        assert self.place.ask("node", "list").returncode == 0
        status = Path(f"/proc/{self.registry.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) / 1024 < MOST_MEMORY_MB
        assert [line for line in self.registry.lines if line["level"] == "error"] == []
        assert self.registry.other == []

    def assert_told_once_a_window(self) -> None:
        refusals = [
            *self.registry.events("tls_handshake_failed"),
            *self.registry.events("handshake_timed_out"),
        ]
        logged = Counter((line["event"], line.get("reason"), line["part"]) for line in refusals)
        assert logged
        assert {what: count for what, count in logged.items() if count > WINDOWS} == {}


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with ExitStack() as running:
        yield Besieged(tmp_path_factory.mktemp("besieged"), running)


def tls_1_1(besieged: Besieged, port: int) -> None:
    context = besieged.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"), besieged.shaken(port, context):
        pass


def anothers_certificate(besieged: Besieged, port: int) -> None:
    own = besieged.place.authority.issue("node")  # not of the authority that vouches for clients
    context = client_context(ca_file=besieged.place.authority.file, own=own)
    with contextlib.suppress(ssl.SSLError, ConnectionError), besieged.shaken(port, context) as opened:
        besieged.assert_cut_off(opened)


def garbage(besieged: Besieged, port: int) -> None:
    too_long = b"\x16\x03\x01\xff\xff" + bytes(70_000)
    for said in (b"\x00" * 3000, too_long, b"\x80" * 500, RECORD + b"\x00\x05hello"):
        with besieged.connected(port) as opened, contextlib.suppress(ConnectionError):
            opened.sendall(said)
            besieged.assert_cut_off(opened)


def garbage_after_the_handshake(besieged: Besieged, port: int) -> None:
    too_long, not_ours = RECORD + b"\xff\xff" + bytes(70_000), RECORD + b"\x40\x00" + bytes(0x4000)
    for said in (b"\x00" * 3000, too_long, not_ours):
        with besieged.shaken(port) as encrypted, contextlib.suppress(ConnectionError):
            os.write(encrypted.fileno(), said)
            besieged.assert_cut_off(encrypted)


def torn_in_the_handshake(besieged: Besieged, port: int) -> None:
    for length in (1, 5, 100):
        with besieged.connected(port) as opened:
            opened.sendall(hello(besieged)[:length])
    with besieged.connected(port) as opened:
        opened.sendall(hello(besieged))
        opened.recv(1)


def hello(besieged: Besieged) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = besieged.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


ATTACKS = (
    tls_1_1,
    anothers_certificate,
    garbage,
    garbage_after_the_handshake,
    torn_in_the_handshake,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_ends_the_attackers_connection_and_no_other(
    besieged: Besieged, attack: Callable[[Besieged, int], None]
) -> None:
    for _ in range(8):
        for port in besieged.ports:
            attack(besieged, port)
    besieged.assert_that_nobody_noticed()
    besieged.assert_told_once_a_window()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to ask for another handshake")
def test_no_client_can_make_the_registry_renegotiate(besieged: Besieged) -> None:
    """Each would cost it a signature, and no new connection."""
    for port in besieged.ports:
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-legacy_renegotiation"]
        done = subprocess.run(
            words, input=b"R\nR\nR\n", capture_output=True, timeout=patience(20), check=False
        )
        assert b"RENEGOTIATING" in done.stdout + done.stderr
        assert b"no renegotiation" in done.stdout + done.stderr
    besieged.assert_that_nobody_noticed()


def test_many_endless_handshakes_are_ended_and_honest_peers_connect_meanwhile(
    besieged: Besieged,
) -> None:
    registry, place = besieged.registry, besieged.place
    tiny = b"\x16\x03\x01\x00\x01\x01"
    halves = (b"", hello(besieged)[:100], hello(besieged)[:200], tiny * 3000)
    before = len(list(Path(f"/proc/{registry.pid}/fd").iterdir()))
    with ExitStack() as crowd:
        for port in besieged.ports:
            for number in range(300):
                opened = crowd.enter_context(besieged.connected(port))
                with contextlib.suppress(ConnectionError):
                    opened.sendall(halves[number % len(halves)])
        late = place.agent(registry.node_url, "late")
        late.await_event("node_registered", within_seconds=30)
        assert place.ask("node", "list").returncode == 0
        eventually(
            lambda: len(list(Path(f"/proc/{registry.pid}/fd").iterdir())) <= before + 5,
            within_seconds=40,
            what="the crowd's files given back",
        )
    besieged.assert_that_nobody_noticed()
    besieged.assert_told_once_a_window()
