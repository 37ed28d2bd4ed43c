"""A real agent's local socket, beside a real registry: what commands show, what orders and jobs come to."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent import local
from gpu_agent.wire.control import status_schema
from gpu_agent.wire.explain_document import explain_schema
from tests.cli.test_schemas import strict
from tests.node.control_harness import reachable_folder
from tests.node.other_user import GID, needs_root, output_of, started
from tests.programs import COMMAND, Agent, Registry, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PACE = ("--heartbeat-interval-seconds=0.5", "--warmup-heartbeat-interval-seconds=0.2")
PATIENCE = 30.0


@dataclass(slots=True)
class Machine:
    """A machine on which an agent runs."""

    socket: Path
    agent: Agent
    node_id: str = ""

    def command(self, *words: str, code: int = 0) -> str:
        """Run a command as its owner does; what it prints, and complains of where it does not succeed."""
        done = subprocess.run(
            [*COMMAND, *words], env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "GPU_AGENT_SOCKET": str(self.socket)}

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.command("status", "--json"))
        jsonschema.validate(document, strict(status_schema()))
        return document

    def await_standing(self, **awaited: object) -> dict[str, Any]:
        """Wait until the status says so."""

        def look() -> dict[str, Any] | None:
            status = local.ask("status", path=self.socket, patience_seconds=PATIENCE)
            return status if all(status[name] == value for name, value in awaited.items()) else None

        return eventually(look, within_seconds=PATIENCE, what=f"{awaited}; {self.agent.output()}")


@contextmanager
def machine_at(registry: Registry, folder: Path) -> Iterator[Machine]:
    with Agent(registry.node_url, folder) as agent:
        agent.await_event("local_socket_listening", within_seconds=20)
        machine = Machine(folder / "agent.sock", agent)
        machine.node_id = machine.await_standing(ready=True)["node_id"]
        yield machine


def node_of(registry: Registry, machine: Machine) -> dict[str, Any]:
    return registry.get(f"/v1/nodes/{machine.node_id}")


def test_a_drain_waits_for_the_job_and_resume_ends_it(tmp_path: Path) -> None:
    with Registry("--allow-simulated", *PACE) as registry, machine_at(registry, tmp_path) as machine:
        page = machine.command("status")
        assert page.startswith(f"{machine.node_id}  ready  (health_checks_passed)\n")
        assert registry.node_url in page
        words = [*COMMAND, "job", "run", "job-1", "--", "sleep", "600"]
        with subprocess.Popen(words, env=machine.environment) as job:
            eventually(
                lambda: node_of(registry, machine)["running_jobs"] == ["job-1"],
                within_seconds=PATIENCE,
                what="the registry counts the job",
            )
            assert "job-1" in machine.command("job", "list")
            drained = machine.command("drain", "--deadline", "10m", "--reason", "new fans")
            assert drained.startswith(f"{machine.node_id} drains: new fans; 1 job in flight; over in ")
            draining = registry.await_status(machine.node_id, "draining", within_seconds=PATIENCE)
            assert draining["in_flight_jobs"] == 1
            status = machine.await_standing(ready=False)["status"]
            assert (status["status"], status["in_flight_jobs"]) == ("draining", 1)
            assert "a drain by its owner: new fans" in machine.command("explain")
            job.send_signal(signal.SIGTERM)
            assert job.wait(20) == 128 + signal.SIGTERM
        registry.await_status(machine.node_id, "offline", within_seconds=PATIENCE)
        assert machine.await_standing(connected=False)["drain"]["over"]
        assert machine.command("status").startswith(f"{machine.node_id}  drained\n")
        machine.command("resume")
        registry.await_status(machine.node_id, "ready", within_seconds=PATIENCE)
        assert machine.await_standing(ready=True)["drain"] is None


def test_the_owner_cannot_end_an_operators_drain(tmp_path: Path) -> None:
    with Registry("--allow-simulated", *PACE) as registry, machine_at(registry, tmp_path) as machine:
        subprocess.run(
            [*COMMAND, "registry", "node", "drain", machine.node_id, "--server", registry.api], check=True
        )
        machine.await_standing(ready=False)
        assert f"gpu-agent registry node resume {machine.node_id}" in machine.command("resume", code=6)
        assert "operator" in machine.command("status")
        subprocess.run(
            [*COMMAND, "registry", "node", "resume", machine.node_id, "--server", registry.api], check=True
        )
        machine.await_standing(ready=True)
        assert "nothing to resume" in machine.command("resume", code=6)


def test_while_the_registry_is_unreachable_every_request_is_answered_and_says_so(tmp_path: Path) -> None:
    with ExitStack() as running:
        registry = running.enter_context(Registry("--allow-simulated", *PACE))
        machine = running.enter_context(machine_at(registry, tmp_path))
        registry.send(signal.SIGKILL)
        registry.wait(10)
        machine.await_standing(connected=False)
        away = machine.status()
        assert (away["status"]["status"], away["status"]["current"], away["ready"]) == ("ready", False, False)
        assert away["session"]["why"]

        def waits() -> bool:
            session = local.ask("status", path=machine.socket)["session"]
            return session["next_attempt_in_seconds"] is not None

        eventually(waits, within_seconds=PATIENCE, what="the next attempt is shown")
        page = machine.command("status")
        assert page.startswith(f"{machine.node_id}  not connected\n")
        assert "before the connection was lost" in page
        why = json.loads(machine.command("explain", "--json"))
        jsonschema.validate(why, strict(explain_schema()))
        assert (why["refuses_every_job"], why["exclusions"][0]["reason"]) == (True, "disconnected")
        assert "the registry is not connected" in machine.command("refresh")
        machine.command("drain", "--deadline", "1s", "--wait")
        assert machine.status()["drain"]["over"]
        machine.command("resume")
        again = ("--allow-simulated", *PACE)
        back = running.enter_context(Registry(*again, node_port=registry.node_port))
        assert machine.await_standing(ready=True)["node_id"] == machine.node_id
        assert back.await_ready(1, within_seconds=PATIENCE)[0]["node_id"] == machine.node_id


def test_a_job_outlives_the_agent_and_is_announced_to_the_next_one(tmp_path: Path) -> None:
    works = (
        "from gpu_agent import local\n"
        "with local.job('job-1') as job:\n    print(job.announced, flush=True)\n    input()"
    )
    with ExitStack() as running:
        registry = running.enter_context(Registry("--allow-simulated", *PACE))
        first = running.enter_context(machine_at(registry, tmp_path))
        worker = running.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", works],
                env=first.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "True\n"
        first.agent.send(signal.SIGKILL)
        first.agent.wait(10)
        assert "no agent answers" in first.command("status", code=5)
        second = running.enter_context(machine_at(registry, tmp_path))
        assert second.node_id == first.node_id
        eventually(
            lambda: node_of(registry, second)["running_jobs"] == ["job-1"],
            within_seconds=PATIENCE,
            what="the job is announced again",
        )
        worker.communicate("\n", timeout=20)
        eventually(
            lambda: node_of(registry, second)["running_jobs"] == [],
            within_seconds=PATIENCE,
            what="it is over",
        )


@needs_root
def test_another_user_may_do_what_its_group_may() -> None:
    asks = (
        "import sys\nfrom pathlib import Path\nfrom gpu_agent import local\n"
        "try:\n    print(local.ask(sys.argv[2], path=Path(sys.argv[1]))['node_id'])\n"
        "except local.LocalError as error:\n    print(error)"
    )
    with ExitStack() as running:
        folder = running.enter_context(reachable_folder())
        registry = running.enter_context(Registry("--allow-simulated", *PACE))
        at = {"GPU_AGENT_SOCKET": str(folder / "s"), "GPU_AGENT_SOCKET_GROUP": str(GID + 1)}
        agent = running.enter_context(Agent(registry.node_url, folder / "state", environment=at))
        agent.await_event("local_socket_listening", within_seconds=20, group=GID + 1)

        def output(ask: str, *groups: int) -> str:
            who = started(asks, str(folder / "s"), ask, groups=groups, also_load="gpu_agent.local")
            return output_of(who)

        assert output("status").startswith("this user may not talk to the agent")
        registry.await_ready(1, within_seconds=PATIENCE)
        assert output("status", GID + 1).strip() == registry.nodes()[0]["node_id"]
        assert "socket_operators" in output("drain", GID + 1)
        assert local.ask("status", path=folder / "s")["drain"] is None
