"""The programs in `examples/` do what `docs/` promises of them, with real agents."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.wire.codes import NodeStatus
from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = '[[declared_models]]\nmodel_id = "my/model"\nversion = "1"\n'


def test_a_scheduler_that_embeds_the_registry_places_jobs_on_a_real_agent(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(MODELS)
    command = [sys.executable, str(EXAMPLES / "embedded_scheduler.py"), str(tmp_path / "registry")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as scheduler:
        assert scheduler.stdin is not None
        assert scheduler.stdout is not None
        scheduler.stdin.write("my/model my/model\n")
        scheduler.stdin.close()
        words = scheduler.stdout.readline().split()
        url, token_file = words[words.index("--registry") + 1], words[words.index("--join-token-file") + 1]
        state_dir = Path(words[words.index("--state-dir") + 1])
        assert state_dir.is_relative_to(tmp_path)
        with Agent(url, state_dir, "--join-token-file", token_file, "--config", str(config)):
            said = scheduler.stdout.read()
        assert scheduler.wait(patience(10)) == 0
    assert said.count("waits: NO_AVAILABLE_NODE") >= 1
    assert sorted(line for line in said.splitlines() if "done" in line) == ["job-0 is done", "job-1 is done"]


@pytest.mark.parametrize("name", ["scheduler.py", "embedded_scheduler.py"])
def test_the_example_schedulers_are_as_short_as_they_say(name: str) -> None:
    lines = (EXAMPLES / name).read_text().split('"""\n', 1)[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 55


class Asker:
    """Asks one registry, and asks the next one after its restart."""

    def __init__(self, registry: Registry) -> None:
        self.api = registry.api

    def ask(self, method: str, path: str, body: object | None = None) -> Any:  # noqa: ANN401 - JSON
        data = None if method in ("GET", "DELETE") else json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.api + path, data=data, method=method, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=patience(5)) as answer:  # noqa: S310 - loopback, ours
            content = answer.read()
            return json.loads(content) if content else None

    def history(self, node_id: str) -> list[dict[str, Any]]:
        events = self.ask("GET", f"/v1/nodes/{node_id}/events")["events"]
        return [{"id": one["id"], "event": one["event"], "fields": one["fields"]} for one in events]

    def histories(self) -> dict[str, list[dict[str, Any]]]:
        return {
            node["node_id"]: self.history(node["node_id"]) for node in self.ask("GET", "/v1/nodes")["nodes"]
        }


class Fleet:
    """Four agents of one registry: two that stay, one that is killed, one that leaves and is forgotten."""

    def __init__(self, registry: Registry, folder: Path, running: ExitStack) -> None:
        agents = [running.enter_context(Agent(registry.node_url, folder / str(one))) for one in range(4)]
        registry.await_ready(4, within_seconds=20)
        ids = [str(agent.events("node_registered")[0]["node_id"]) for agent in agents]
        self.cordoned, self.drained, self.lost, self.forgotten = ids
        self._lost, self._leaving = agents[2:]

    def live(self, registry: Registry, asker: Asker) -> None:
        """Let everything happen to them that makes a history."""
        asker.ask("POST", "/v1/claims", {"job_id": "j1", "allowed_nodes": [self.lost]})
        asker.ask("POST", "/v1/claims", {"job_id": "j2", "allowed_nodes": [self.cordoned]})
        asker.ask("POST", f"/v1/nodes/{self.cordoned}/cordon", {"reason": "a fan is loud"})
        asker.ask("POST", f"/v1/nodes/{self.drained}/drain", {"reason": "an update", "deadline_seconds": 1})
        self._lost.send(signal.SIGKILL)
        self._leaving.send(signal.SIGTERM)
        registry.await_event("claim_lost", within_seconds=20)
        registry.await_status(self.drained, "offline", within_seconds=10)
        asker.ask("DELETE", f"/v1/nodes/{self.forgotten}")


@pytest.mark.timeout(120)
def test_the_log_alone_yields_every_nodes_history_as_the_api_shows_it(tmp_path: Path) -> None:
    """Over registrations, claims, drains, a node that is killed, one that is removed, and a restart."""
    store = ("--store", f"sqlite://{tmp_path}/registry.db", "--allow-simulated", "--max-cpu-percent=100")
    quick = (
        "--heartbeat-timeout-seconds=3",
        "--heartbeat-interval-seconds=1",
        "--warmup-heartbeat-interval-seconds=0.3",
    )
    with ExitStack() as running:
        first = running.enter_context(Registry(*store, *quick))
        asker = Asker(first)
        fleet = Fleet(first, tmp_path, running)
        fleet.live(first, asker)
        first.send(signal.SIGKILL)
        first.wait(patience(5))
        second = running.enter_context(
            Registry(*store, *quick, node_port=first.node_port, operator_port=first.operator_port)
        )
        asker.ask("POST", f"/v1/nodes/{fleet.drained}/resume")
        second.await_ready(2, within_seconds=20)
        histories = asker.histories()
        newest = max(event["id"] for events in histories.values() for event in events)

        def logged() -> bool:
            """The pipe is read by a thread of its own."""
            return any(line.get("event_id", 0) >= newest for line in second.lines)

        eventually(logged, within_seconds=5, what=f"event {newest} in the log")
        lines = [line for line in (*first.lines, *second.lines) if line.get("event_id", 0) <= newest]
    command = [sys.executable, str(EXAMPLES / "history_from_log.py")]
    log = "\n".join(map(json.dumps, lines))
    printed = subprocess.run(command, input=log, capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == histories
    assert set(histories) == {fleet.cordoned, fleet.drained, fleet.lost}


STUB_LITELLM = """
class Router:
    def __init__(self, model_list, num_retries):
        self.workers = {}

    def set_model_list(self, model_list):
        self.workers = {one["model_info"]["id"]: one["litellm_params"] for one in model_list}

    async def acompletion(self, model, messages):
        from openai import OpenAIError
        from types import SimpleNamespace as Some
        if not self.workers:
            raise OpenAIError("no healthy deployments")
        if messages[0]["content"] == "fail":
            raise OpenAIError("the worker has ended")
        words = " ".join(sorted(f"{one['api_base']} {one['weight']}" for one in self.workers.values()))
        return Some(choices=[Some(message=Some(content=f"{messages[0]['content']}: {words}"))])
"""
"""What the example uses of LiteLLM."""
STUB_OPENAI = "class OpenAIError(Exception): pass"


@pytest.mark.timeout(120)
def test_the_router_of_the_example_follows_the_workers(tmp_path: Path) -> None:
    (tmp_path / "litellm.py").write_text(STUB_LITELLM)
    (tmp_path / "openai.py").write_text(STUB_OPENAI)
    config = tmp_path / "agent.toml"
    config.write_text(f'endpoint = "http://10.0.0.1:8000"\n{MODELS}')
    quick = ("--allow-simulated", "--warmup-heartbeat-interval-seconds=0.2", "--max-cpu-percent=100")
    with (
        Registry(*quick) as registry,
        Agent(registry.node_url, tmp_path / "agent", "--config", str(config)),
    ):
        (ready,) = registry.await_ready(1, within_seconds=20)
        command = [sys.executable, str(EXAMPLES / "litellm_router.py"), registry.api, "my/model"]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        ) as router:
            assert router.stdin is not None
            assert router.stdout is not None
            assert router.stderr is not None
            node, asker = f"/v1/nodes/{ready['node_id']}", Asker(registry)
            router.stdin.write("hello\n")
            router.stdin.flush()
            assert router.stdout.readline() == "hello: http://10.0.0.1:8000/v1 5\n"
            asker.ask("POST", f"{node}/cordon", {"reason": "a fan"})
            assert [router.stderr.readline()[:2] for _ in range(2)] == ["1 ", "0 "]
            router.stdin.write("fail\nhello\n")
            router.stdin.close()
            asker.ask("POST", f"{node}/uncordon")
            assert router.stdout.readline() == "hello: http://10.0.0.1:8000/v1 5\n"
            assert "no answer: the worker has ended" in router.stderr.read()
            assert router.wait(patience(10)) == 0


@pytest.mark.parametrize("name", ["embedded_scheduler.py", "litellm_router.py"])
def test_an_example_without_its_arguments_says_how_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / "litellm.py").write_text(STUB_LITELLM)
    (tmp_path / "openai.py").write_text(STUB_OPENAI)
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], env=path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert f": python {name} " in run.stderr
    assert "Traceback" not in run.stderr


class Slurm:
    """What stands in for Slurm's commands and ours: they answer from files, and note what is asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = folder / "asked"
        for name, answer in (("sinfo", "reason"), ("gpu-agent", "status"), ("scontrol", "nothing")):
            program = folder / name
            program.write_text(
                f'#!/bin/sh\necho "$(basename $0) $*" >> {self._asked}\ncat {folder}/{answer}\n'
            )
            program.chmod(0o755)
        (folder / "nothing").touch()

    def check(self, *, state: str, status: str | None, current: bool = True) -> list[str]:
        """What the health check changes where `sinfo` shows this state and reason."""
        said = {
            "status": status,
            "current": current,
            "reason_code": "gpu_unavailable",
            "reason": "GPU 0 is lost",
        }
        (self._folder / "status").write_text("" if status is None else json.dumps({"status": said}))
        (self._folder / "reason").write_text(f"{state}\n")
        self._asked.write_text("")
        command = [sys.executable, str(EXAMPLES / "slurm_node_health.py")]
        path = {"PATH": f"{self._folder}:/usr/bin:/bin", "SLURMD_NODENAME": "n7"}
        subprocess.run(command, check=True, env=path, timeout=patience(20))
        return [line for line in self._asked.read_text().splitlines() if line.startswith("scontrol")]


def test_slurms_health_check_drains_what_the_registry_gives_no_jobs_and_resumes_only_that(
    tmp_path: Path,
) -> None:
    slurm = Slurm(tmp_path)
    ours = "gpu-agent: gpu_unavailable: GPU 0 is lost"
    drain = [f"scontrol update NodeName=n7 State=DRAIN Reason={ours}"]
    assert slurm.check(state="idle none", status="degraded") == drain
    assert slurm.check(state="drained gpu-agent: model_missing: m", status="degraded") == drain
    assert slurm.check(state=f"drained {ours}", status="degraded") == []
    assert slurm.check(state="draining the admin: a new disk", status="degraded") == []
    assert slurm.check(state=f"draining {ours}", status="ready") == [
        "scontrol update NodeName=n7 State=UNDRAIN"
    ]
    assert slurm.check(state="drained the admin: a new disk", status="ready") == []
    assert slurm.check(state="mixed none", status="ready") == []
    assert slurm.check(state="mixed none", status=None) == []
    assert slurm.check(state="mixed none", status="offline", current=False) == []


@pytest.mark.parametrize("status", NodeStatus)
def test_slurms_health_check_drains_a_node_in_every_status_that_takes_no_jobs_but_registering(
    tmp_path: Path, status: NodeStatus
) -> None:
    changed = Slurm(tmp_path).check(state="idle none", status=status)
    assert bool(changed) is (status not in (NodeStatus.READY, NodeStatus.REGISTERING))


def test_the_example_for_prometheus_reads_the_route_that_the_registry_has() -> None:
    assert "/v1/http_sd" in (EXAMPLES / "prometheus.yml").read_text()
