import os
import signal
import tempfile
from pathlib import Path

import pytest

from gpu_agent.cli.demo.fleet import MEMBERS, Process, running_fleet
from gpu_agent.cli.outcome import Failure


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_processes_and_files_go_however_the_block_ends(tmp_path: Path) -> None:
    started: list[Process] = []

    def fail_inside() -> None:
        with running_fleet() as fleet:
            started.extend(fleet.processes)
            raise RuntimeError("the block failed")

    with pytest.raises(RuntimeError, match="the block failed"):
        fail_inside()
    assert len(started) == 1 + len(MEMBERS)
    assert all(one.process.poll() is not None for one in started)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_is_told_with_its_last_words() -> None:
    with running_fleet() as fleet:
        victim = fleet.processes[-1]
        os.kill(victim.process.pid, signal.SIGKILL)
        victim.process.wait(5)
        with pytest.raises(Failure, match=f"{victim.name} ended with -9"):
            fleet.check_alive()


def test_waiting_in_vain_is_told_with_what_for() -> None:
    with running_fleet() as fleet, pytest.raises(Failure, match="in vain: the moon"):
        fleet.await_(lambda: None, seconds=0.2, what="the moon")


def test_this_machines_own_settings_are_not_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a simulation configured here, the demo took the machine for one with GPUs and waited in vain."""
    monkeypatch.setenv("GPU_AGENT_SIMULATE", "8xH100-80GB")
    monkeypatch.setenv("GPU_REGISTRY_REQUIRED_MODELS", "nobody/has-this")
    with running_fleet() as fleet:
        assert fleet.simulated
        fleet.await_(
            lambda: [n for n in fleet.api.get("/v1/nodes")["nodes"] if n["status"] == "ready"][2:] or None,
            seconds=20,
            what="three ready nodes",
        )
