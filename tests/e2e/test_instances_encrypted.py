"""Instances with certificates on every port: for nodes, for operators with their own, and for links."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.runtime.tls.contexts import OwnCertificate
from tests.authority import Authority
from tests.e2e.encrypted import EncryptedRegistry
from tests.programs import COMMAND, eventually
from tests.store.etcd_cluster import Cluster, cluster, free_ports
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


class Place:
    """Two instances, what vouches for them, and an operator."""

    def __init__(self, folder: Path, etcd: Cluster, running: ExitStack) -> None:
        self.folder, self._etcd, self._running = folder, etcd, running
        self.public, self.links, self.clients = (
            Authority(folder / name) for name in ("public", "links", "clients")
        )
        self.known = folder / "known.pem"
        self.known.write_text(self.clients.file.read_text() + self.links.file.read_text())
        self.operator = self.clients.issue("operator")

    def instance(self, name: str, *, links: Authority | None = None) -> EncryptedRegistry:
        public, own = self.public.issue(), (links or self.links).issue()
        members = ",".join(f"127.0.0.1:{port}" for _, port in self._etcd.access.endpoints)
        one = EncryptedRegistry(
            *("--store", f"etcd://{members}/{self.folder.name}", "--state-dir", str(self.folder / name)),
            *("--instance-name", name, "--instance-listen", f"127.0.0.1:{free_ports(1)[0]}"),
            *("--tls-client-ca-file", str(self.known), *_named("tls", public)),
            *("--instance-ca-file", str(self.links.file), *_named("instance", own)),
            auth="on",
        )
        return self._running.enter_context(one)

    def ask(self, api: str, *words: str, by: str) -> dict[str, Any]:
        """Ask an instance, with the token that the instance `by` has written."""
        token = self.folder / by / "operator.token"
        done = subprocess.run(
            [
                *(*COMMAND, "registry", *words, "--json", "--server", api, "--token-file", str(token)),
                *("--tls-ca-file", str(self.public.file)),
                *(
                    "--tls-cert-file",
                    str(self.operator.cert_file),
                    "--tls-key-file",
                    str(self.operator.key_file),
                ),
            ],
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _named(port: str, own: OwnCertificate) -> tuple[str, ...]:
    return (f"--{port}-cert-file", str(own.cert_file), f"--{port}-key-file", str(own.key_file))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as running:
        yield Place(tmp_path, running.enter_context(cluster(1)), running)


def test_an_instance_with_a_certificate_of_theirs_links_forwards_and_takes_over(place: Place) -> None:
    first = place.instance("a")
    first.await_event("leading_began", within_seconds=20)
    second = place.instance("b")
    second.await_event("leader_linked", within_seconds=20)
    members = place.ask(second.api, "members", by="a")["members"]
    assert [(one["name"], one["role"]) for one in members] == [("a", "leader"), ("b", "standby")]
    first.send(signal.SIGKILL)
    second.await_event("leading_began", within_seconds=20)
    assert place.ask(second.api, "members", by="a")["members"][0]["name"] == "b"


def test_an_instance_with_another_certificate_links_to_no_leader(place: Place) -> None:
    first = place.instance("a")
    first.await_event("leading_began", within_seconds=20)
    foreign = place.instance("b", links=Authority(place.folder / "foreign"))
    said = foreign.await_event("leader_not_reached", within_seconds=30)
    assert "see whether it accepts this instance's certificate" in said["problem"]
    assert foreign.events("leader_linked") == []
    eventually(
        lambda: [one["nodes"] for one in place.ask(first.api, "members", by="a")["members"]] == [0, 0],
        within_seconds=5,
        what="both names in etcd",
    )
