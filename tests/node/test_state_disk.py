"""A state disk that is full or closed: it is said everywhere, and never makes a second node of a machine."""

import json
from pathlib import Path

import pytest

from gpu_agent.node import identity as identity_file
from gpu_agent.node.identity import FILE, IdentityFile, find_disk_fault
from gpu_agent.node.liveness import unit_line
from gpu_agent.session.types import State
from tests.bare_registry import ACK, listening_registry
from tests.node.running_agent import running_agent, settings_for
from tests.small_disk import Ballast, mounted

WITH_TOKEN = {**ACK, "node_token": "gpun_1_secret"}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_file, "CHECK_SECONDS", 0.05)


async def test_a_machine_without_an_identity_registers_only_once_its_disk_takes_one(tmp_path: Path) -> None:
    with mounted(tmp_path / "state", kib=64) as folder:
        ballast = Ballast(folder)
        ballast.fill()
        async with listening_registry(WITH_TOKEN) as registry:
            settings = settings_for(registry.url, tmp_path, state_dir=folder)
            async with running_agent(settings) as running:
                await running.until(lambda: running.agent.session.last_refusal is not None)
                await running.until(lambda: running.agent.session.state is State.BACKING_OFF)
                snapshot = running.agent.snapshot()
                assert "its identity could not be stored" in (snapshot.session.last_refusal or "")
                assert "(No space left on device); make room on that disk" in unit_line(snapshot)
                assert registry.connections == []
                ballast.throw_off()
                await registry.next("node_heartbeat")
                await running.until(lambda: running.agent.snapshot().state_problem is None)
        assert json.loads((folder / FILE).read_text())["node_token"] == "gpun_1_secret"


async def test_an_identity_that_found_no_room_is_stored_once_there_is_some(tmp_path: Path) -> None:
    with mounted(tmp_path / "state", kib=64) as folder:
        IdentityFile(folder).save("node-A", "gpun_0_old")
        ballast = Ballast(folder)
        ballast.fill()
        async with listening_registry(WITH_TOKEN) as registry:
            settings = settings_for(registry.url, tmp_path, state_dir=folder)
            async with running_agent(settings) as running:
                await registry.next("node_heartbeat")
                await running.until(lambda: running.agent.snapshot().state_problem is not None)
                assert "make room" in unit_line(running.agent.snapshot())
                ballast.throw_off()
                await running.until(lambda: running.agent.snapshot().state_problem is None)
        assert json.loads((folder / FILE).read_text())["node_token"] == "gpun_1_secret"


async def test_a_full_disk_is_said_though_nothing_has_to_be_stored(tmp_path: Path) -> None:
    with mounted(tmp_path / "state", kib=64) as folder:
        IdentityFile(folder).save("node-A", "gpun_0_old")
        async with listening_registry() as registry:
            settings = settings_for(registry.url, tmp_path, state_dir=folder)
            async with running_agent(settings) as running:
                await registry.next("node_heartbeat")
                assert running.agent.snapshot().state_problem is None
                ballast = Ballast(folder)
                ballast.fill()
                await running.until(lambda: running.agent.snapshot().state_problem is not None)
                said = unit_line(running.agent.snapshot())
                assert said.startswith(f"the disk of {folder} is full: make room there; ")
                ballast.throw_off()
                await running.until(lambda: running.agent.snapshot().state_problem is None)
                assert running.agent.session.state is State.REGISTERED


def test_a_disk_with_room_has_no_fault(tmp_path: Path) -> None:
    assert find_disk_fault(tmp_path) is None


def test_a_folder_that_is_closed_to_the_agents_user_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may do everything
    assert "may not write" in (find_disk_fault(tmp_path) or "")
