"""The attacker's list, the part of TLS on the agent's side: who stands where its registry should be.

What attackers do to a registry's encrypted ports: `test_attackers_tls_ports`.
"""

import json
import ssl
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, server_context
from tests.authority import Authority, self_signed
from tests.e2e.encrypted import Encrypted, await_why
from tests.e2e.impostors import Impostor
from tests.programs import Agent, eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform == "win32", reason="modes of files"),
    pytest.mark.timeout(240),
]

NODE_TOKEN = "gpun_0123abcd_thenodetokenthatnobodymayhear"
JOIN_TOKEN = "gpuj_0123abcd_thejointokenthatnobodymayhear"
SECRETS = (NODE_TOKEN.encode(), JOIN_TOKEN.encode(), b"Bearer", b"Authorization")


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


@dataclass(frozen=True)
class Case:
    """An impostor, and what its victim should say of it."""

    name: str
    context: ssl.SSLContext | None
    words: str
    answer: bytes = b""
    pin: OwnCertificate | None = None


def too_old(own: OwnCertificate) -> ssl.SSLContext:
    context = server_context(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def known_agent(running: ExitStack, url: str, folder: Path, *arguments: str) -> Agent:
    """An agent that has an id and a token of its own already, and a join token besides."""
    folder.mkdir(mode=0o700)
    identity = {"format": 1, "node_id": "node-KNOWN", "node_token": NODE_TOKEN}
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "identity.json").chmod(0o600)
    token = folder / "join.token"
    token.write_text(JOIN_TOKEN)
    token.chmod(0o600)
    words = ("--join-token-file", str(token), "--log-level", "debug", *arguments)
    return running.enter_context(Agent(url, folder, *words, simulate="1xT4-16GB"))


def test_an_unauthenticated_registry_receives_no_token_and_the_log_says_why(
    running: ExitStack, tmp_path: Path
) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    cases = (
        Case(
            "expired",
            server_context(ours.issue(from_days=-9, to_days=-1)),
            "certificate has expired: have it",
        ),
        Case("early", server_context(ours.issue(from_days=2, to_days=9)), "is not valid yet: see that this"),
        Case(
            "wrong-name", server_context(ours.issue("elsewhere.example")), "certificate is not for localhost"
        ),
        Case("self-signed", server_context(self_signed(tmp_path)), "it was signed by itself alone"),
        Case("unknown", server_context(others.issue()), "an authority unknown here issued it"),
        Case("other-key", server_context(ours.issue()), "which is none of `tls_pin`", pin=ours.issue()),
        Case("old", too_old(ours.issue()), "speaks only TLS older than 1.2: have it brought up"),
        Case("plaintext", None, "what listens there speaks no TLS", answer=switching),
    )
    victims: list[tuple[Case, Impostor, Agent]] = []
    for case in cases:
        impostor = running.enter_context(Impostor(case.context, case.answer))
        trust = ["--tls-ca-file", str(ours.file)]
        if case.pin is not None:
            trust += ["--tls-pin", pin_of(read_certificate_file(case.pin.cert_file))]
        victims.append((case, impostor, known_agent(running, impostor.url, tmp_path / case.name, *trust)))
    for case, impostor, agent in victims:
        await_why(agent, case.words, within_seconds=60)
        assert impostor.visits
        assert [secret for secret in SECRETS if secret in impostor.heard] == [], case.name
        assert NODE_TOKEN not in agent.output()
        assert JOIN_TOKEN not in agent.output()


def test_a_registry_that_sends_agents_elsewhere_is_not_followed(running: ExitStack, tmp_path: Path) -> None:
    """Neither to another place over TLS, nor down to the clear: the token stays with the one it is for."""
    ours = Authority(tmp_path / "ours")
    below = running.enter_context(Impostor(None))
    beside = running.enter_context(Impostor(server_context(ours.issue())))
    for name, target in (("down", f"ws://localhost:{below.port}/ws/node"), ("away", beside.url)):
        words = f"HTTP/1.1 301 Moved Permanently\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        sending = running.enter_context(Impostor(server_context(ours.issue()), words.encode()))
        agent = known_agent(running, sending.url, tmp_path / name, "--tls-ca-file", str(ours.file))
        eventually(
            lambda one=sending: one.visits > 1,  # type: ignore[misc]  # the loop's own
            within_seconds=60,
            what=f"another attempt; said: {agent.output()}",
        )
    assert (below.visits, beside.visits, below.heard, beside.heard) == (0, 0, b"", b"")


def test_a_registry_that_restarts_without_tls_is_refused_until_it_has_it_again(
    running: ExitStack, tmp_path: Path
) -> None:
    place = Encrypted(tmp_path, running)
    place.trust(place.authority)
    registry = place.registry()
    node_port, operator_port = registry.node_port, int(registry.api.rsplit(":", 1)[1])
    place.make_join_token()
    agent = place.agent(registry.node_url, "a")
    (node,) = place.await_ready()
    for encrypted in (False, True):
        registry.end()
        registry = place.registry(node_port=node_port, operator_port=operator_port, encrypted=encrypted)
        if not encrypted:
            await_why(agent, "what listens there hung up in the middle of the handshake", within_seconds=60)
            assert [one["connected"] for one in place.nodes()] == [False]
    assert place.await_ready(within_seconds=60)[0]["node_id"] == node["node_id"]
