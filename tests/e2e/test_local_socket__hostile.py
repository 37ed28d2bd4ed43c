"""Programs that mean harm, on the local socket of a real agent: it goes on beating, and answers others.

Where root runs it they are members of the socket's group, as workers are; else they are the agent's own user.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from gpu_agent import local
from tests.node.control_harness import reachable_folder
from tests.node.other_user import GID, UID, output_of, started
from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(180),
]

PACE = (
    "--heartbeat-interval-seconds=0.5",
    "--warmup-heartbeat-interval-seconds=0.2",
    "--heartbeat-timeout-seconds=10",
)
ATTACK_SECONDS = 6
MOST_MEMORY_MB = 120
"""More than the agent had before; its answers to many programs at once are what costs."""
AS_ROOT = os.geteuid() == 0
GROUP = GID + 7
ATTACKERS = "tests.e2e.local_attackers"
NEIGHBOUR = """
import sys, time
from pathlib import Path
from gpu_agent import local
answered, ends_at = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < ends_at:
    answered += local.ask("status", path=Path(sys.argv[1]), patience_seconds=30)["ready"]
    time.sleep(0.2)
print(answered)
"""
"""An honest program of another member of the group; it fails where it is not answered."""


@dataclass(frozen=True, slots=True)
class Besieged:
    """An agent with its registry, and what it cost before anybody attacked."""

    registry: Registry
    agent: Agent
    socket: Path
    memory: int
    files: int

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.agent.pid)

    def is_healthy(self) -> bool:
        """Whether its registry shows it ready and connected."""
        node = self.registry.nodes()[0]
        return bool(
            node["status"] == "ready"
            and node["connected"]
            and node["last_heartbeat_age_seconds"] < patience(6)
        )

    def ask_as_owner(self) -> None:
        """An honest owner is answered, and the machine is not drained."""
        status = local.ask("status", path=self.socket, patience_seconds=30)
        assert (status["ready"], status["drain"]) == (True, None), status

    def answers(self) -> bool:
        """Whether a request is answered now."""
        try:
            return bool(local.ask("status", path=self.socket, patience_seconds=20)["ready"])
        except local.RefusedError:
            return False


@contextmanager
def besieged(folder: Path) -> Iterator[Besieged]:
    with reachable_folder() as reachable, Registry("--allow-simulated", *PACE) as registry:
        socket = reachable / "agent.sock"
        environment = {"GPU_AGENT_SOCKET": str(socket)}
        if AS_ROOT:
            environment["GPU_AGENT_SOCKET_GROUP"] = str(GROUP)
        with Agent(registry.node_url, folder, environment=environment) as agent:
            registry.await_ready(1, within_seconds=30)
            process = psutil.Process(agent.pid)
            yield Besieged(registry, agent, socket, process.memory_info().rss, process.num_fds())


@contextmanager
def attacked(socket: Path) -> Iterator["subprocess.Popen[str]"]:
    program = (
        f"import sys\nfrom {ATTACKERS} import main\nmain(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])"
    )
    words = (program, str(socket), str(ATTACK_SECONDS))
    if AS_ROOT:
        attackers = started(*words, groups=[GROUP], also_load=ATTACKERS)
    else:
        command = [sys.executable, "-c", *words, "order_about"]  # whose orders would be obeyed
        attackers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ExitStack() as undo:
        undo.callback(attackers.communicate)
        undo.callback(attackers.kill)
        assert attackers.stdout is not None
        assert attackers.stdout.readline() == "attacking\n"
        undo.pop_all()
    yield attackers


@contextmanager
def neighbour_of(siege: Besieged) -> Iterator["subprocess.Popen[str] | None"]:
    if not AS_ROOT:
        yield None
        return
    words = (NEIGHBOUR, str(siege.socket), str(ATTACK_SECONDS))
    asks = started(*words, uid=UID + 1, groups=[GROUP], also_load="gpu_agent.local")
    try:
        yield asks
    finally:
        asks.kill()
        asks.wait(patience(10))


def test_no_program_on_the_machine_stops_the_agent_or_its_other_clients(tmp_path: Path) -> None:
    with besieged(tmp_path) as siege:
        answered = 0
        with attacked(siege.socket) as attackers, neighbour_of(siege) as asks:
            while attackers.poll() is None:
                assert siege.is_healthy(), siege.registry.nodes()
                if AS_ROOT:  # else the attackers have the connections that are reserved for operators
                    siege.ask_as_owner()
                    answered += 1
                time.sleep(0.1)
            made = json.loads(output_of(attackers))
            if asks is not None:
                assert int(output_of(asks) or 0) > 1
        assert all(made.values()), made
        assert answered > 3 or not AS_ROOT
        eventually(siege.answers, within_seconds=20, what="the agent answers")
        eventually(
            lambda: siege.process.num_fds() <= siege.files + 3,
            within_seconds=30,
            what="connections are closed",
        )
        eventually(
            lambda: local.ask("job_list", path=siege.socket)["in_flight"] == [],
            within_seconds=10,
            what="the jobs of those who have gone are over",
        )
        assert siege.process.memory_info().rss - siege.memory < MOST_MEMORY_MB * 2**20
        assert not [line for line in siege.agent.lines if line["level"] in ("error", "crash")]
        assert len(siege.agent.lines) < 300
