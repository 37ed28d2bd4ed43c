"""The tour works word for word, one command after the other."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.documents import page
from tests.programs import COMMAND, Program, eventually, free_port
from tests.waiting import patience

pytestmark = pytest.mark.e2e

BLOCKS: list[str] = re.findall(r"```sh\n(.*?)```", page("tour.md"), re.DOTALL)
ENDLESS = "event follow"


class Tour:
    """The tour's terminals: a folder and a home of their own, and ports that are free."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {"8080": free_port(), "8081": free_port()}
        self._environment = {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}",
        }

    def here(self, text: str) -> str:
        for port, ours in self._ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}")
        return text

    def start(self, command: str) -> Program:
        program, *words = shlex.split(self.here(command))
        assert program == "gpu-agent"
        if words[:2] == ["registry", "serve"]:
            for option, port in (("--node-listen", "8080"), ("--operator-listen", "8081")):
                words += [option, f"127.0.0.1:{self._ports[port]}"]
        return Program(*words, environment=self._environment, folder=self._folder)

    def run(self, text: str) -> str:
        """What the commands print; all of them end well."""
        done = subprocess.run(
            ["sh", "-ec", self.here(text)],
            cwd=self._folder,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        return done.stdout

    def await_ready(self) -> str:
        """The id of the node, once it takes jobs."""

        def look() -> str | None:
            nodes = json.loads(self.run("gpu-agent registry node list --json"))["nodes"]
            return next((str(node["node_id"]) for node in nodes if node["status"] == "ready"), None)

        return eventually(look, within_seconds=30, what="a node that is ready")


def block(words: str) -> str:
    return next(text for text in BLOCKS if words in text)


def commands(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if ENDLESS not in line)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour says that its last block needs curl")
@pytest.mark.timeout(300)
def test_every_command_of_the_tour_works_after_the_ones_before_it(tmp_path: Path) -> None:
    tour = Tour(tmp_path)
    with ExitStack() as running:
        serving = running.enter_context(tour.start(block("registry serve")))
        serving.await_event("registry_listening", within_seconds=20)
        create, run = block("gpu-agent run --registry").splitlines()
        tour.run(create)
        running.enter_context(tour.start(run))
        node_id = tour.await_ready()
        for command in commands(block("gpu-agent status").replace("sleep 60", "sleep 0")):
            tour.run(command)
        assert tour.await_ready() == node_id
        for command in commands(re.sub(r"\bID\b", node_id, block("gpu-agent registry node list"))):
            tour.run(command)
        assert tour.await_ready() == node_id
        create, rest = block("alias ask").split("\n", 1)
        tour.run(create)
        made, renewed, released = tour.run(rest).splitlines()
    assert json.loads(made)["claim_id"] == json.loads(renewed)["claim_id"]
    assert released == ""
