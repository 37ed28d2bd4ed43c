"""`registry claim run` against a real registry with a simulated node of two GPUs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_agent.cli.main import main
from gpu_agent.cli.registry.claim_run import claim_variables
from gpu_agent.wire.api import ClaimNode, ClaimView
from tests.cli.stand_in import standing_in
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

QUICK = (
    "--allow-simulated",
    "--warmup-heartbeat-interval-seconds=0.1",
    "--heartbeat-interval-seconds=1",
    "--max-cpu-percent=100",
)
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
UNTIL_TERM = (
    "import os, signal; signal.signal(15, lambda *_: os._exit(9)); print('up', flush=True); signal.pause()"
)
DEAF = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("agent")
    with Registry(*QUICK, "--claim-ttl-seconds=1.5") as registry, Agent(registry.node_url, folder):
        registry.await_ready(1, within_seconds=20)
        yield registry


def words(registry: Registry, *arguments: str) -> list[str]:
    return [*COMMAND, "registry", "claim", "run", *arguments[:1], "--server", registry.api, *arguments[1:]]


def start(registry: Registry, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words(registry, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(registry: Registry, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(registry, *arguments), capture_output=True, text=True, timeout=patience(30), check=False
    )


def claims(registry: Registry) -> list[str]:
    return [claim["job_id"] for claim in registry.get("/v1/claims")["claims"]]


def first_line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def ended(running: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = running.communicate(timeout=patience(30))
    return running.returncode, said


def test_the_command_finds_its_claim_in_its_environment_and_the_end_releases_it(registry: Registry) -> None:
    (node,) = registry.nodes()
    done = run(registry, "job-1", "--gpus", "2", "--", sys.executable, "-c", SHOW)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    uuids = {gpu["uuid"] for gpu in node["gpus"]}
    assert set(found["GPU_AGENT_GPU_UUIDS"].split(",")) == uuids
    assert found["CUDA_VISIBLE_DEVICES"] == found["GPU_AGENT_GPU_UUIDS"]
    assert found["GPU_AGENT_NODE_ID"] == node["node_id"]
    assert found["GPU_AGENT_HOSTNAME"] == node["hostname"]
    claim = json.loads(found["GPU_AGENT_CLAIM"])
    assert claim["claim_id"] == found["GPU_AGENT_CLAIM_ID"]
    assert [(one["hostname"], set(one["gpu_uuids"])) for one in claim["nodes"]] == [(node["hostname"], uuids)]
    assert found["GPU_AGENT_ENDPOINT"] == ""
    assert len(found["GPU_AGENT_CLAIM_ID"]) == 32
    assert claims(registry) == []


def test_gpus_without_uuids_are_named_by_their_indices() -> None:
    node = ClaimNode(node_id="n", hostname=None, gpu_uuids=(), gpu_indices=(1, 3), endpoint="10.0.0.1:9000")
    claim = ClaimView(
        claim_id="c",
        job_id="j",
        state="active",
        owner=None,
        nodes=(node,),
        granted_at=0,
        expires_at=0,
        expires_in_seconds=1,
        ttl_seconds=1,
    )
    assert claim_variables(claim) == {
        "GPU_AGENT_CLAIM": claim.model_dump_json(),
        "GPU_AGENT_HOSTNAME": "",
        "GPU_AGENT_NODE_ID": "n",
        "GPU_AGENT_NODE_IDS": "n",
        "GPU_AGENT_ENDPOINT": "10.0.0.1:9000",
        "GPU_AGENT_CLAIM_ID": "c",
        "GPU_AGENT_GPU_UUIDS": "",
        "CUDA_VISIBLE_DEVICES": "1,3",
    }


def test_a_claim_that_is_too_long_for_a_variable_is_left_out() -> None:
    nodes = tuple(
        ClaimNode(node_id=f"n{number}", hostname="ü" * 250, gpu_uuids=(), gpu_indices=(), endpoint=None)
        for number in range(256)
    )
    claim = ClaimView(
        claim_id="c",
        job_id="j",
        state="active",
        owner=None,
        nodes=nodes,
        granted_at=0,
        expires_at=0,
        expires_in_seconds=1,
        ttl_seconds=1,
    )
    found = claim_variables(claim)
    assert "GPU_AGENT_CLAIM" not in found
    assert found["GPU_AGENT_NODE_IDS"].endswith(",n255")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/hostname", 126)])
def test_a_command_that_cannot_be_run_is_refused_before_anything_is_claimed(
    command: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with standing_in({}) as registry:
        assert main(["registry", "claim", "run", "job-1", "--server", registry.api, "--", command]) == code
        assert registry.asked == []
    assert command in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ('echo "$1" -- $2; exit 3', 3)]
)
def test_its_code_is_the_commands(registry: Registry, command: str, code: int) -> None:
    assert run(registry, "job-1", "--", "sh", "-c", command, "--", "a", "-x").returncode == code
    assert claims(registry) == []


def test_words_behind_the_dashes_are_the_commands_own(registry: Registry) -> None:
    done = run(
        registry, "job-1", "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "--wait"
    )
    assert done.stdout == "['--', '--wait']\n"


def test_a_command_that_does_not_exist_is_127_and_releases(registry: Registry) -> None:
    done = run(registry, "job-1", "--", "/no/such/command")
    assert (done.returncode, claims(registry)) == (127, [])


def test_without_a_command_nothing_is_claimed(registry: Registry) -> None:
    done = run(registry, "job-1", "--gpus", "1")
    assert (done.returncode, claims(registry)) == (4, [])
    assert "COMMAND" in done.stderr


def test_the_claim_is_renewed_while_the_command_runs(registry: Registry) -> None:
    with start(registry, "job-1", "--", sys.executable, "-c", UNTIL_TERM) as running:
        assert first_line(running) == "up"
        began = registry.get("/v1/claims")["claims"][0]["expires_at"]
        eventually(
            lambda: registry.get("/v1/claims")["claims"][0]["expires_at"] > began + 1.5,
            within_seconds=10,
            what="it outlives its TTL",
        )
        running.send_signal(signal.SIGTERM)
        assert ended(running)[0] == 9
    assert claims(registry) == []


@contextmanager
def waiting_behind_another(
    registry: Registry,
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    both = ("--gpus", "2", "--wait", "60s", "--")
    with start(registry, "first", *both, sys.executable, "-c", UNTIL_TERM) as first:
        assert first_line(first) == "up"
        with start(registry, "second", *both, "true") as second:
            eventually(
                lambda: any(job["open_requests"] for job in registry.get("/v1/queue")["jobs"]),
                within_seconds=10,
                what="the second waits",
            )
            yield first, second


def test_it_waits_for_free_gpus(registry: Registry) -> None:
    with waiting_behind_another(registry) as (first, second):
        first.send_signal(signal.SIGTERM)
        assert ended(first)[0] == 9
        assert ended(second)[0] == 0


def test_no_free_gpu_is_exit_7_and_the_command_is_not_run(registry: Registry, tmp_path: Path) -> None:
    touch = f"touch {shlex.quote(str(tmp_path / 'ran'))}"
    began = time.monotonic()
    for wait in ([], ["--wait", "300s"]):
        done = run(registry, "job-1", "--gpus", "9", *wait, "--", "sh", "-c", touch)
        assert done.returncode == 7, done.stderr
    assert time.monotonic() - began < patience(20)
    assert not (tmp_path / "ran").exists()


def test_an_interrupted_wait_leaves_no_claim(registry: Registry) -> None:
    with waiting_behind_another(registry) as (first, second):
        second.send_signal(signal.SIGTERM)
        assert ended(second)[0] == 130
        first.send_signal(signal.SIGTERM)
        ended(first)
    assert claims(registry) == []


def await_follower(registry: Registry) -> None:
    def look() -> bool:
        with urllib.request.urlopen(f"{registry.api}/metrics") as answer:  # noqa: S310 - loopback, ours
            return any(
                line.startswith("gpu_registry_event_subscribers ") and float(line.split()[1]) >= 1
                for line in answer.read().decode().splitlines()
            )

    eventually(look, within_seconds=10, what="the events are followed")


def release(registry: Registry, job_id: str) -> None:
    subprocess.run([*COMMAND, "registry", "claim", "release", job_id, "--server", registry.api], check=True)


def test_a_lost_claim_ends_the_command_only_if_asked(registry: Registry) -> None:
    with start(registry, "job-1", "--", sys.executable, "-c", UNTIL_TERM) as running:
        assert first_line(running) == "up"
        release(registry, "job-1")
        assert running.stderr is not None
        running.stderr.readline()
        assert "the command goes on (--kill-on-loss would end it)" in running.stderr.readline()
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert ended(running)[0] == 9
    at_once = ("--kill-on-loss", "--ttl", "600s")
    with start(registry, "job-1", *at_once, "--", sys.executable, "-c", UNTIL_TERM) as running:
        assert first_line(running) == "up"
        await_follower(registry)
        release(registry, "job-1")
        code, said = ended(running)
        assert code == 9
        assert "lost its claim, and the command is ended: it was released" in said


def test_a_registry_that_stands_still_for_a_ttl_means_that_the_claim_is_lost_in_time(
    registry: Registry,
) -> None:
    with start(registry, "job-1", "--kill-on-loss", "--", sys.executable, "-c", UNTIL_TERM) as running:
        assert first_line(running) == "up"
        os.kill(registry.pid, signal.SIGSTOP)
        try:
            assert running.stderr is not None
            running.stderr.readline()
            began = time.monotonic()
            assert "it could not be renewed in time" in running.stderr.readline()
            assert time.monotonic() - began < patience(3)
        finally:
            os.kill(registry.pid, signal.SIGCONT)
        assert ended(running)[0] == 9


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace_time(registry: Registry) -> None:
    options = ("--kill-on-loss", "--grace", "1s")
    with start(registry, "job-1", *options, "--", sys.executable, "-c", DEAF) as running:
        assert first_line(running) == "up"
        release(registry, "job-1")
        assert ended(running)[0] == 128 + signal.SIGKILL


@pytest.mark.timeout(120)
def test_the_command_runs_on_through_kill_9_of_the_registry(tmp_path: Path) -> None:
    store = ("--store", f"sqlite://{tmp_path}/registry.db", "--claim-ttl-seconds=1", *QUICK)
    with Registry(*store) as first, Agent(first.node_url, tmp_path / "agent"):
        first.await_ready(1, within_seconds=20)
        options = ("--ttl", "20s", "--kill-on-loss")  # a busy machine may take ten for a restart
        command = ("--", sys.executable, "-c", UNTIL_TERM)
        with start(first, "job-1", *options, *command) as running, start(first, "job-2", *command) as short:
            assert [first_line(one) for one in (running, short)] == ["up", "up"]
            os.kill(first.pid, signal.SIGKILL)
            first.wait(patience(5))
            again = Registry(*store, node_port=first.node_port, operator_port=first.operator_port)
            with again as second:

                def left() -> float:
                    return float(second.get("/v1/claims/job-1")["expires_in_seconds"])

                fresh = left()
                eventually(lambda: left() < fresh - 1, within_seconds=10, what="time passes")
                eventually(lambda: left() > 19, within_seconds=15, what="it is renewed")
                for one in (running, short):
                    one.send_signal(signal.SIGTERM)
                (code, _), (_, said) = ended(running), ended(short)
                assert code == 9
                assert said.index("has lost its claim") < said.index("job-2 holds its claim again")
                assert claims(second) == []
