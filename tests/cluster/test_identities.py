"""Who is let in between machines: certificates of links, certificates for etcd, names of instances."""

import json
import socket
import ssl
import struct
from contextlib import suppress

import pytest

from gpu_agent.server.gateway.instance_links import LINK_VERSION
from gpu_agent.server.gateway.link import Kind
from tests.authority import Authority
from tests.cluster.machines import LINK_PORT, Cluster
from tests.waiting import patience


def test_a_link_needs_a_certificate_of_the_instances_authority(cluster: Cluster) -> None:
    host = cluster.await_leader().host.address
    nobody, stranger = cluster.links.trusting(), cluster.links.trusting(cluster.front.issue())
    assert answer_to_hello(host, nobody) == b""
    assert answer_to_hello(host, stranger) == b""
    assert answer_to_hello(host, cluster.links.trusting(cluster.links.issue()))


def answer_to_hello(host: str, context: ssl.SSLContext) -> bytes:
    """What a leader answers to the first frame of an instance; empty where it ends the connection."""
    hello = json.dumps({"name": "stranger", "version": LINK_VERSION, "nonce": "00"}).encode()
    frame = struct.pack("!IBQ", 9 + len(hello), Kind.HELLO, 0) + hello
    with (
        suppress(ssl.SSLError, ConnectionError),  # TLS 1.3 refuses a certificate after its handshake
        socket.create_connection((host, LINK_PORT), timeout=patience(10)) as plain,
        context.wrap_socket(plain, server_hostname=host) as link,
    ):
        link.sendall(frame)
        return link.recv(1)
    return b""


def test_an_instance_with_a_foreign_certificate_never_links(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    place = cluster.instances.index(cluster.standbys[0])
    with cluster.start(place, links=foreign, name="stranger", apart=100) as stranger:
        stranger.await_event("leader_not_reached", within_seconds=30)
        assert cluster.ask(stranger, "/readyz") is None
        assert not stranger.events("leader_linked")
        stranger.end()


def test_a_second_instance_of_one_name_is_refused(cluster: Cluster) -> None:
    with cluster.start(1, name="registry-2", apart=200) as second:
        code = second.wait(patience(30))
        assert code != 0
        assert "--instance-name" in second.output()
    cluster.await_whole()


def test_etcd_refuses_an_instance_without_its_certificate(cluster: Cluster) -> None:
    with cluster.start(1, name="anonymous", apart=300, etcd_certificate=False) as anonymous:
        code = anonymous.wait(patience(60))
        assert code != 0
        assert "etcd" in anonymous.output()
