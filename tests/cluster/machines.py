"""The cluster under test: three machines with an instance each, three with a member of etcd, one of agents.

Everything is encrypted, as between real machines: nodes and operators, etcd, and the links between instances,
each by an authority of its own.
"""

import json
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.authority import Authority
from tests.histories.network import Cut, Host, add_host
from tests.programs import Program, eventually
from tests.store.etcd_cluster import Cluster as Etcd
from tests.store.etcd_cluster import Member, cluster, hand_over
from tests.waiting import patience

INSTANCES, AGENTS = 3, 6
NODE_PORT, OPERATOR_PORT, LINK_PORT = 8080, 8081, 8082
ETCD_QUOTA_BYTES = 32 << 20
START_SECONDS = 30.0

Claims = Mapping[str, str]
"""The id of each claim by its job."""


class Instance(Program):
    """One instance on its machine; it may be started again there."""

    def __init__(self, host: Host, *options: str, operator_port: int = OPERATOR_PORT) -> None:
        super().__init__("registry", "serve", *options, within=host.words)
        self.host = host
        self.api = f"https://{host.address}:{operator_port}"

    @property
    def leads(self) -> bool:
        began, ended = (len(self.events(f"leading_{word}")) for word in ("began", "ended"))
        return not self.ended and began > ended

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(5)


class Cluster:
    """The machines, and what runs on them."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self._folder, self._running = folder, running
        hosts = [add_host(number, running) for number in range(2 * INSTANCES + 1)]
        self.hosts, self.etcd_hosts = hosts[:INSTANCES], hosts[INSTANCES : 2 * INSTANCES]
        self.agents_host = hosts[-1]
        self.front, self.links = Authority(folder / "front"), Authority(folder / "links")
        self._etcd_authority = Authority(folder / "etcd")
        self.etcd = self._start_etcd()
        self.instances = [self.start(place) for place in range(INSTANCES)]
        self.token = self._first_token()
        self._join_token = self._made_join_token()
        self.agents = [self._start_agent(number) for number in range(AGENTS)]
        self.await_whole()

    # What is started.

    def _start_etcd(self) -> Etcd:
        own = self._etcd_authority.issue(*(host.address for host in self.etcd_hosts))
        hand_over(self._folder / "etcd")
        return self._running.enter_context(
            cluster(
                INSTANCES,
                *("--cert-file", str(own.cert_file), "--key-file", str(own.key_file)),
                *("--client-cert-auth", "--trusted-ca-file", str(self._etcd_authority.file)),
                *("--quota-backend-bytes", str(ETCD_QUOTA_BYTES)),
                tls=self._etcd_authority.trusting(self._etcd_authority.issue()),
                hosts=self.etcd_hosts,
            )
        )

    def start(
        self,
        place: int,
        *,
        links: Authority | None = None,
        name: str | None = None,
        apart: int = 0,
        etcd_certificate: bool = True,
    ) -> Instance:
        """Start an instance; `apart` is added to its ports, and its certificate may be of other `links`."""
        host = self.hosts[place]
        name = name or f"registry-{place}"
        front, own = self.front.issue(host.address), (links or self.links).issue(host.address)
        etcd = self._etcd_authority.issue("registry")
        members = ",".join(f"{address}:{port}" for address, port in self.etcd.access.endpoints)
        proof = ("--etcd-cert-file", str(etcd.cert_file), "--etcd-key-file", str(etcd.key_file))
        one = Instance(
            host,
            *("--store", f"etcd://{members}/cluster", "--instance-name", name, "--allow-simulated"),
            *("--state-dir", str(self._folder / f"state-{place}-{apart}")),
            *("--node-listen", f"{host.address}:{NODE_PORT + apart}"),
            *("--operator-listen", f"{host.address}:{OPERATOR_PORT + apart}"),
            *("--instance-listen", f"{host.address}:{LINK_PORT + apart}"),
            *("--tls-cert-file", str(front.cert_file), "--tls-key-file", str(front.key_file)),
            *("--instance-ca-file", str(self.links.file)),
            *("--instance-cert-file", str(own.cert_file), "--instance-key-file", str(own.key_file)),
            *("--etcd-ca-file", str(self._etcd_authority.file)),
            *(proof if etcd_certificate else ()),
            *("--claim-ttl-seconds", "600"),
            operator_port=OPERATOR_PORT + apart,
        )
        return self._running.enter_context(one)

    def restart(self, one: Instance) -> Instance:
        """Start an instance that has ended again on its machine."""
        place = self.instances.index(one)
        self.instances[place] = self.start(place)
        return self.instances[place]

    def _first_token(self) -> str:
        files = [self._folder / f"state-{place}-0" / "operator.token" for place in range(INSTANCES)]
        found = eventually(
            lambda: next((one.read_text().strip() for one in files if one.exists()), None),
            within_seconds=START_SECONDS,
            what=f"the first operator token; {self.instances[0].output()}",
        )
        eventually(lambda: self.leader, within_seconds=START_SECONDS, what="a leader")
        return found

    def _made_join_token(self) -> str:
        asked = {"kind": "join", "uses": AGENTS}
        made = eventually(
            lambda: self.ask(self.instances[0], "/v1/tokens", asked), within_seconds=10, what="a join token"
        )
        return str(made["token"])

    def _start_agent(self, number: int) -> Program:
        agent = Program(
            *("run", "--simulate", "1xL4-24GB", "--state-dir", str(self._folder / f"agent-{number}")),
            *("--registry", ",".join(f"wss://{host.address}:{NODE_PORT}" for host in self.hosts)),
            *("--tls-ca-file", str(self.front.file)),
            environment={"GPU_AGENT_JOIN_TOKEN": self._join_token},
            within=self.agents_host.words,
        )
        return self._running.enter_context(agent)

    # What is asked.

    def ask(
        self, one: Instance, path: str, body: object = None, *, seconds: float = 5.0
    ) -> dict[str, Any] | None:
        """What an instance answers; None where it refuses, or does not answer in time."""
        with suppress(OSError, ValueError):
            return self.answer(one, path, body, seconds=seconds)
        return None

    def answer(
        self,
        one: Instance,
        path: str,
        body: object = None,
        *,
        seconds: float = 5.0,
        method: str | None = None,
    ) -> dict[str, Any]:
        """What an instance answers; raises `OSError`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(one.api + path, data, headers, method=method)  # noqa: S310 - ours
        with urllib.request.urlopen(  # noqa: S310 - ours
            request, timeout=seconds, context=self.front.trusting()
        ) as response:
            document: dict[str, Any] = json.loads(response.read() or b"{}")
            return document

    @property
    def leader(self) -> Instance | None:
        return next((one for one in self.instances if one.leads), None)

    @property
    def standbys(self) -> list[Instance]:
        return [one for one in self.instances if not one.ended and not one.leads]

    def held(self, by: Instance) -> dict[str, int]:
        """How many nodes each instance holds."""
        members = self.answer(by, "/v1/members")["members"]
        return {one["name"]: one["nodes"] for one in members}

    def name(self, one: Instance) -> str:
        return f"registry-{self.hosts.index(one.host)}"

    def spread(self) -> None:
        """Let each instance hold a node: agents choose again, at random, until it is so."""
        while not all(self.held(self.await_leader()).values()):
            for number, one in enumerate(self.agents):
                one.end()
                self.agents[number] = self._start_agent(number)
            self.await_whole()

    def sessions(self, by: Instance) -> dict[str, int] | None:
        """The session of each node, where all are connected and ready; else None."""
        nodes = (self.ask(by, "/v1/nodes") or {"nodes": []})["nodes"]
        ready = [one for one in nodes if one["status"] == "ready" and one["connected"]]
        if len(ready) < AGENTS:
            return None
        with suppress(OSError):
            found = [self.answer(by, f"/v1/nodes/{one['node_id']}") for one in ready]
            return {one["node_id"]: one["session_epoch"] for one in found}
        return None

    def claims(self, by: Instance) -> Claims | None:
        found = self.ask(by, "/v1/claims", seconds=2.0)
        return None if found is None else {one["job_id"]: one["claim_id"] for one in found["claims"]}

    def claim(self, by: Instance, job_id: str) -> str | None:
        found = self.ask(by, "/v1/claims", {"job_id": job_id}, seconds=3.0)
        return None if found is None or "claim_id" not in found else str(found["claim_id"])

    def claimed(self, by: Instance, job_id: str, *, within_seconds: float = 20.0) -> str:
        """Claim, again and again, until it is granted."""
        return eventually(
            lambda: self.claim(by, job_id), within_seconds=within_seconds, what=f"a claim for {job_id}"
        )

    def release_all(self) -> None:
        leader = self.await_leader()
        for job_id in self.claims(leader) or ():
            self.answer(leader, f"/v1/claims/{job_id}", method="DELETE")

    def events(self, by: Instance) -> list[tuple[int, str]]:
        """All events, by number and identifier."""
        url = f"{by.api}/v1/events?after=0&follow=false"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})  # noqa: S310
        with urllib.request.urlopen(  # noqa: S310 - ours
            request, timeout=patience(10), context=self.front.trusting()
        ) as stream:
            lines = stream.read().decode().splitlines()
        numbers = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        return list(zip(numbers, names, strict=True))

    # What is awaited.

    def await_leader(self, *, within_seconds: float = 20.0) -> Instance:
        """An instance that leads and answers."""

        def look() -> Instance | None:
            one = self.leader
            return one if one is not None and self.claims(one) is not None else None

        return eventually(look, within_seconds=within_seconds, what="a leader that answers")

    def await_whole(self) -> dict[str, int]:
        """All instances run and are linked, and all nodes are ready; returns their sessions."""
        for one in self.instances:
            eventually(
                lambda one=one: (self.ask(one, "/readyz") or {}).get("ready"),  # type: ignore[misc]
                within_seconds=START_SECONDS,
                what=f"{one.api} ready; {one.output()}",
            )
        eventually(
            lambda: sorted(self.held(self.await_leader())) == [self.name(one) for one in self.instances],
            within_seconds=START_SECONDS,
            what="the names of all instances",
        )
        return self.await_ready(self.await_leader(), within_seconds=60)

    def await_ready(self, by: Instance, *, within_seconds: float) -> dict[str, int]:
        return eventually(
            lambda: self.sessions(by), within_seconds=within_seconds, what=f"{AGENTS} nodes ready"
        )

    def nothing_was_lost(self, by: Instance, granted: Claims) -> None:
        """No node timed out, no claim was lost, and the events have no gap."""
        found = self.events(by)
        numbers = [number for number, _ in found]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert not {"heartbeat_timeout", "claim_lost"} & {name for _, name in found}, found[-20:]
        assert granted.items() <= (self.claims(by) or {}).items()

    # What is cut.

    def cut(self, one: Host, *others: Host) -> Cut:
        return Cut("cut", [(one, other) for other in others])

    def cable_of(self, one: Instance) -> Cut:
        """All that leads to a machine with an instance and a member of etcd."""
        place = self.hosts.index(one.host)
        own = (one.host, self.etcd_hosts[place])
        others = [host for host in (*self.hosts, *self.etcd_hosts, self.agents_host) if host not in own]
        return Cut("cable", [(mine, other) for mine in own for other in others])


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield what says how many seconds have passed."""
    began = time.monotonic()
    yield lambda: time.monotonic() - began


def etcd_followers(etcd: Etcd) -> Sequence[Member]:
    leader = etcd.leader()
    return [one for one in etcd.members if one is not leader]
