"""What reads a program's log stands still, as a pager, a container's runtime or journald may.

The program goes on.
"""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.programs import COMMAND, Agent, Registry, eventually, free_port
from tests.waiting import patience

pytestmark = pytest.mark.e2e

JUNK = b"x" * 4096


class StuckReader:
    """A pipe that is full, as the log of a program, until somebody reads it again."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        self._read: IO[bytes] = os.fdopen(reading, "rb")
        os.set_blocking(self._writing, False)
        while self._fill():
            pass
        os.set_blocking(self._writing, True)

    def _fill(self) -> bool:
        try:
            return os.write(self._writing, JUNK) > 0
        except BlockingIOError:
            return False

    @contextmanager
    def log_of(self, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a program that logs to it."""
        process = subprocess.Popen([*COMMAND, *command], stderr=self._writing, stdout=subprocess.DEVNULL)
        os.close(self._writing)
        try:
            yield process
        finally:
            process.kill()
            process.wait(patience(5))
            self._read.close()

    def lines(self) -> list[dict[str, Any]]:
        """Read the log to its end, which comes with the program's."""
        lines = self._read.read().lstrip(b"x").splitlines()
        return [json.loads(line) for line in lines]


def test_an_agent_whose_log_nobody_reads_becomes_ready_and_its_lines_are_kept(tmp_path: Path) -> None:
    stuck = StuckReader()
    with Registry("--allow-simulated") as registry:
        words = (
            "run",
            "--registry",
            registry.node_url,
            "--state-dir",
            str(tmp_path),
            "--simulate",
            "1xL4-24GB",
        )
        with stuck.log_of(*words) as agent:
            node = registry.await_ready(1, within_seconds=20)[0]
            agent.send_signal(signal.SIGTERM)
            lines = stuck.lines()
            assert agent.wait(patience(5)) == 0
    assert node["status"] == "ready"
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    events = [line["event"] for line in lines]
    assert {"agent_started", "node_registered"} <= set(events)
    assert events[-1] == "agent_ended"


def test_a_registry_whose_log_nobody_reads_serves_nodes_and_operators_and_ends(tmp_path: Path) -> None:
    stuck, node_port, operator_port = StuckReader(), free_port(), free_port()
    words = ("--node-listen", f"127.0.0.1:{node_port}", "--operator-listen", f"127.0.0.1:{operator_port}")
    with stuck.log_of(
        "registry", "serve", "--auth", "off", "--store", "memory", "--allow-simulated", *words
    ) as process:
        with Agent(f"ws://127.0.0.1:{node_port}/ws/node", tmp_path, simulate="1xL4-24GB"):
            url = f"http://127.0.0.1:{operator_port}/v1/nodes"
            eventually(lambda: _statuses(url) == ["ready"], within_seconds=20, what="the node is ready")
        process.terminate()
        assert process.wait(patience(6)) == 0  # nobody reads its last lines either


def _statuses(url: str) -> list[str]:
    """The statuses of all nodes; none while the registry does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=patience(5)) as answer:  # noqa: S310 - loopback, ours
            return [node["status"] for node in json.load(answer)["nodes"]]
    except OSError:
        return []
