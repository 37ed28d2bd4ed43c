"""Both programs under a service manager: ready, alive, stopping, each said when it is true."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.programs import COMMAND, Agent, Program, Registry, eventually, free_port
from tests.service_manager import service_manager
from tests.waiting import patience

pytestmark = pytest.mark.e2e

WATCHDOG = {"WATCHDOG_USEC": "400000"}


def test_systemd_receives_ready_watchdog_and_stopping_of_an_agent_without_a_registry(tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager:
        environment = {**manager.environment, **WATCHDOG}
        url = f"ws://127.0.0.1:{free_port()}/ws/node"
        with Agent(url, tmp_path / "state", environment=environment) as agent:
            manager.hear_until("READY=1", within_seconds=20)
            manager.hear_until("STATUS=not connected, will try again: ", within_seconds=20)
            for _ in range(5):
                manager.hear_until("WATCHDOG=1")
            agent.send(signal.SIGTERM)
            assert agent.wait(patience(6)) == 0
        assert "STOPPING=1" in manager.received_so_far()


def test_systemds_status_line_shows_the_nodes_status(tmp_path: Path) -> None:
    with (
        service_manager(tmp_path) as manager,
        Registry("--allow-simulated") as registry,
        Agent(registry.node_url, tmp_path / "state", environment=manager.environment),
    ):
        assert manager.hear_until("STATUS=ready as node-", within_seconds=30)


def test_an_agent_that_cannot_start_is_never_ready_and_leaves_the_reason(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    with service_manager(tmp_path) as manager:
        with Agent("ws://127.0.0.1:1", tmp_path / "state", environment=manager.environment) as agent:
            assert agent.wait(patience(20)) == 4
        (reason,) = manager.received_so_far()
        assert reason.startswith(f"STATUS=ended: the state directory {tmp_path / 'state'} cannot be used")


def _configured(folder: Path, registry: Registry, **labels: str) -> Path:
    file = folder / "agent.toml"
    stated = ", ".join(f'{name} = "{value}"' for name, value in labels.items())
    file.write_text(f'registry_url = "{registry.node_url}"\nlabels = {{ {stated} }}\n')
    return file


def test_a_reload_reports_new_labels_on_the_same_session_and_a_faulty_file_changes_nothing(
    tmp_path: Path,
) -> None:
    with service_manager(tmp_path) as manager, Registry("--allow-simulated") as registry:
        file = _configured(tmp_path, registry, zone="a")
        words = ("run", "--config", str(file), "--state-dir", str(tmp_path / "state"), "--simulate", "1xL4")
        with Program(*words, environment=manager.environment) as agent:
            (node,) = registry.await_ready(1, within_seconds=30)
            assert node["labels"] == {"zone": "a"}
            _configured(tmp_path, registry, zone="b", rack="7")
            agent.send(signal.SIGHUP)
            manager.hear_until("RELOADING=1")
            manager.hear_until("READY=1")
            assert agent.await_event("settings_reloaded")["changed"] == ["labels"]

            def labels() -> bool:
                return bool(registry.nodes()[0]["labels"] == {"zone": "b", "rack": "7"})

            eventually(labels, within_seconds=5, what="the new labels")
            file.write_text("colour = 1")
            agent.send(signal.SIGHUP)
            assert "'colour' is no setting" in agent.await_event("settings_not_reloaded")["problem"]
            (node,) = registry.nodes()
            assert (node["status"], node["labels"]) == ("ready", {"zone": "b", "rack": "7"})
            assert len(agent.events("node_registered")) == 1


def test_a_hang_up_of_its_terminal_ends_an_agent_in_the_foreground(tmp_path: Path) -> None:
    person, shown = pty.openpty()
    where = ("--registry", "ws://127.0.0.1:1", "--state-dir", str(tmp_path / "state"), "--simulate", "1xL4")
    with (
        os.fdopen(shown, "rb+", buffering=0) as terminal,
        os.fdopen(person, "rb+", buffering=0) as screen,
        subprocess.Popen((*COMMAND, "run", *where), stdin=terminal, stdout=terminal, stderr=terminal) as run,
    ):
        seen = b""
        while b"session_backing_off" not in seen:
            seen += screen.read(4096)
        run.send_signal(signal.SIGHUP)
        assert run.wait(patience(6)) == 0
