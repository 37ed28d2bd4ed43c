import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpu_agent.cli import demo
from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import Failure
from gpu_agent.cli.demo import (
    JOB,
    MEMBERS,
    DemoFleet,
    DemoProcess,
    Walk,
    operator_token,
    running_fleet,
    write_join_token,
)
from gpu_agent.cli.demo_workload import DRAIN_AFTER_SECONDS, KINDS, OFFLINE_SECONDS, Workload
from gpu_agent.cli.main import main
from gpu_agent.cli.output.screen import print_changes
from gpu_agent.cli.output.text import Line, plain_text
from gpu_agent.wire.api import ClaimList, NodeList, TokenList
from tests.cli.terminal import OnTerminal
from tests.programs import Registry
from tests.waiting import patience


def test_a_walk_that_fails_exits_non_zero_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_self: Walk) -> None:
        raise Failure("no node became ready")

    monkeypatch.setattr(Walk, "all_steps", fails)
    assert main(["demo", "--once"]) == 1
    assert "no node became ready" in capsys.readouterr().err


def test_the_demo_says_which_gpus_it_uses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Walk, "all_steps", lambda _self: None)
    assert main(["demo", "--once"]) == 0
    said = capsys.readouterr().out
    assert "simulate" in said or "own GPUs" in said


def test_the_live_table_shows_work_and_the_printed_command_works_until_interrupted() -> None:
    with OnTerminal("demo") as terminal:
        terminal.await_words("runs on alpha")
        terminal.await_words("GPUs free")
        command = next(one for one in terminal.shown.splitlines() if "--token-file" in one)
        once = command.strip().replace("--watch ", "")
        done = subprocess.run(["sh", "-c", once], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "alpha" in done.stdout
        terminal.send(signal.SIGINT)
        assert terminal.wait() == 0
        assert "Ended: all processes are gone." in terminal.shown


def test_the_command_for_another_terminal_can_be_typed_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = Path(demo.own_command())
    assert path.is_absolute()
    assert os.access(path, os.X_OK)
    (tmp_path / "gpu-agent").touch(mode=0o755)
    assert Path(demo.own_command()) == path, "another program of this name"
    (tmp_path / "gpu-agent").unlink()
    (tmp_path / "gpu-agent").symlink_to(path)
    assert demo.own_command() == "gpu-agent"


def test_in_a_pipe_work_and_each_change_are_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def until_a_job_is_done(changes: Iterable[Line]) -> None:
        listed = list(changes)
        print_changes(listed)
        seen.extend(map(plain_text, listed))
        if any("done on" in words for words in seen):
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "print_changes", until_a_job_is_done)
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.splitlines()[-1] == "Ended: all processes are gone."
    ready = {words.split()[0] for words in seen if "→ ready" in words}
    first = next(words for words in seen if "runs on" in words)
    assert first.split("runs on ")[1].split(",")[0] in ready <= {member.name for member in MEMBERS}


def test_a_registry_that_was_killed_is_reported_and_not_its_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killing(fleet: DemoFleet, *_: object) -> None:
        os.kill(fleet.processes[0].process.pid, signal.SIGKILL)
        while True:
            fleet.api.get("/v1/nodes", NodeList)

    monkeypatch.setattr(demo, "_show", killing)
    assert main(["demo"]) == 1
    assert "the demo's registry ended with -9" in capsys.readouterr().err


def fill(fleet: DemoFleet) -> None:
    for number in range(100):
        fleet.api.request("POST", "/v1/claims", {"job_id": f"other-{number}"})


def await_three_ready_nodes(fleet: DemoFleet) -> None:
    def look() -> bool | None:
        nodes = fleet.api.get("/v1/nodes", NodeList).model.nodes
        return [node.status for node in nodes] == ["ready"] * 3 or None

    fleet.wait_for(look, seconds=20, what="three ready nodes")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_processes_and_files_go_however_the_block_ends(tmp_path: Path) -> None:
    started: list[DemoProcess] = []

    def fail_inside() -> None:
        with running_fleet() as fleet:
            started.extend(fleet.processes)
            raise RuntimeError("the block failed")

    with pytest.raises(RuntimeError, match="the block failed"):
        fail_inside()
    assert len(started) == 1 + len(MEMBERS)
    assert all(one.process.poll() is not None for one in started)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_is_reported_with_the_end_of_its_log() -> None:
    with running_fleet() as fleet:
        victim = fleet.processes[-1]
        os.kill(victim.process.pid, signal.SIGKILL)
        victim.process.wait(patience(5))
        with pytest.raises(Failure, match=f"{victim.name} ended with -9"):
            fleet.check_alive()


def test_waiting_in_vain_is_reported_with_its_aim() -> None:
    with running_fleet() as fleet, pytest.raises(Failure, match="in vain: the moon"):
        fleet.wait_for(lambda: None, seconds=0.2, what="the moon")


def test_this_machines_own_settings_are_not_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a simulation configured here, the demo took the machine for one with GPUs and waited in vain."""
    monkeypatch.setenv("GPU_AGENT_SIMULATE", "8xH100-80GB")
    monkeypatch.setenv("GPU_REGISTRY_REQUIRED_MODELS", "no-node/has-this")
    with running_fleet() as fleet:
        assert fleet.simulated
        await_three_ready_nodes(fleet)


def test_a_real_registrys_tokens_are_read_and_created(tmp_path: Path) -> None:
    with Registry("--state-dir", str(tmp_path / "state"), auth="on") as registry:
        token = operator_token(tmp_path / "state")
        api = Api(registry.api, token=token)
        file = write_join_token(api, tmp_path / "join", uses=3)
        own, join = api.get("/v1/tokens", TokenList).model.tokens
    assert token.text.startswith("gpuo_")
    assert (own.role, join.kind, join.uses) == ("admin", "join", 3)
    assert file.read_text().startswith(f"gpuj_{join.token_id}_")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_registry_that_wrote_no_token_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"no token to .*operator\.token"):
        operator_token(tmp_path)


def test_the_walk_goes_through_the_main_job_and_times_each_step() -> None:
    said: list[str] = []
    with running_fleet() as fleet:
        Walk(fleet, said.append, started=time.monotonic()).all_steps()
        statuses = [node.status for node in fleet.api.get("/v1/nodes", NodeList).model.nodes]
    assert sorted(statuses) == ["offline", "ready", "ready"]
    steps = [line for line in said if line.startswith("[")]
    assert [line for line in steps if "ready" in line or "claimed" in line or "drain" in line]
    assert steps[-1].endswith("done")


def test_a_step_that_goes_wrong_ends_the_walk_with_its_reason() -> None:
    with running_fleet() as fleet:
        await_three_ready_nodes(fleet)
        with pytest.raises(Refused, match="no node can take this job"):
            fill(fleet)
        with pytest.raises(Failure, match="no node can take this job"):
            Walk(fleet, lambda _: None, started=time.monotonic()).all_steps()
        assert JOB not in str(fleet.api.request("GET", "/v1/nodes"))


def test_the_fleet_gets_jobs_and_a_drain_and_each_line_says_what_was_seen() -> None:
    """The times are handed in, so that the jobs end as soon as the test says so; the fleet is real."""
    longest = max(kind.seconds for kind in KINDS)
    with running_fleet() as fleet:
        await_three_ready_nodes(fleet)
        workload = Workload(fleet.api, simulated=True)
        begun = [plain_text(one) for at in (0.0, 2.0, 4.0, 6.0) for one in workload.step(at)]
        assert [words.split()[1] for words in begun] == ["chat-1", "whisper-2", "translate-3", "train-4"]
        assert begun[0] == "job chat-1  runs on alpha, GPUs 0, 1"
        claims = fleet.api.get("/v1/claims", ClaimList).model.claims
        assert {claim.job_id for claim in claims} == {words.split()[1] for words in begun}

        drained = [plain_text(one) for one in workload.step(DRAIN_AFTER_SECONDS)]
        (operator,) = [words for words in drained if words.startswith("operator")]
        name = operator.split()[2]
        ended = [plain_text(one) for one in workload.step(DRAIN_AFTER_SECONDS + longest)]
        assert any(words.startswith("job train-4  done on ") for words in (*drained, *ended))

        def look() -> str | None:
            now = DRAIN_AFTER_SECONDS + longest + 1.0
            seen = [plain_text(one) for at in (now, now + OFFLINE_SECONDS) for one in workload.step(at)]
            return next((words for words in seen if "resumes" in words), None)

        assert fleet.wait_for(look, seconds=20, what="a resume") == f"operator  resumes {name}"


def test_a_job_that_finds_no_node_says_why() -> None:
    with running_fleet() as fleet:
        await_three_ready_nodes(fleet)
        with pytest.raises(Refused):
            fill(fleet)
        said = [plain_text(one) for one in Workload(fleet.api, simulated=True).step(0.0)]
    assert said == ["job chat-1  no node takes it now: 2 model_not_available, 1 capacity_exceeded"]
