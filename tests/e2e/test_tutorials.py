"""The tutorials are right word for word: their commands and programs run, and print what the pages show."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpu_agent import client
from gpu_agent.client import RegistryError, sync
from tests.documents import page
from tests.programs import COMMAND, Agent, Program, Registry, eventually, free_port
from tests.waiting import patience

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial" / "scheduler.md").read_text(encoding="utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)]


class Tutorial:
    """The page's blocks, with ports and folders of this test."""

    def __init__(self, folder: Path) -> None:
        self._ports = {"8080": str(free_port()), "8081": str(free_port())}
        self._folder = folder

    def here(self, text: str) -> str:
        for port, ours in self._ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}")
        return text.replace("/tmp/tutorial", str(self._folder))  # noqa: S108 - what the page says

    def command(self, words: str) -> str:
        return next(self.here(text) for kind, text in BLOCKS if kind == "sh" and words in text)

    def start(self, words: str) -> Program:
        """Start what a block starts; the registry on this test's ports."""
        program, *arguments = shlex.split(self.command(words))
        assert program == "gpu-agent"
        if words == "registry serve":
            for option, port in (("--node-listen", "8080"), ("--operator-listen", "8081")):
                arguments += [option, f"127.0.0.1:{self._ports[port]}"]
        return Program(*arguments)

    def run(self, text: str, *, kind: str) -> str:
        """What a block prints; ids differ from run to run."""
        if kind == "sh":
            text = text.replace("gpu-agent", COMMAND[0]).replace("python ", f"{sys.executable} ")
        command = ["sh", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=patience(60),
            cwd=ROOT,
            check=False,
            env={**os.environ, "GPU_REGISTRY_SERVER": self.here("http://127.0.0.1:8081")},
        )
        assert done.returncode == 0, done.stderr
        return re.sub(r"\b(node|GPU)-[0-9A-Za-z-]+", r"\1-…", done.stdout)


@pytest.mark.timeout(180)
def test_every_command_and_program_of_the_page_does_what_it_shows(tmp_path: Path) -> None:
    tutorial = Tutorial(tmp_path)
    with ExitStack() as running:
        serving = running.enter_context(tutorial.start("registry serve"))
        serving.await_event("registry_listening", within_seconds=20)
        agent = running.enter_context(tutorial.start("gpu-agent run"))
        agent.await_event("node_status_changed", within_seconds=30, to="ready")
        shown = [
            (kind, text, BLOCKS[at + 1][1])
            for at, (kind, text) in enumerate(BLOCKS[:-1])
            if BLOCKS[at + 1][0] == "text"
        ]
        assert len(shown) == 4
        for kind, text, output in shown:
            assert sorted(tutorial.run(tutorial.here(text), kind=kind).splitlines()) == sorted(
                output.splitlines()
            )
        assert len(tutorial.run(tutorial.command("claim run"), kind="sh").strip()) == 32


class FirstNode:
    """`first-node.md`, its blocks in their order: what a person types in three terminals."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._node_port, self._operator_port = free_port(), free_port()
        self._blocks = iter(re.findall(r"```sh\n# (in the .*)\n((?:.*\n)*?)```", page("first-node.md")))
        self._variables = {**os.environ, "PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}"}
        self.node = ""

    def next_block(self, where: str) -> str:
        stated, text = next(self._blocks)
        assert stated == where, text
        return str(text).replace("/tmp/first", str(self._folder)).replace("node-3ECEA4E2", self.node)  # noqa: S108 - what the page says

    def follow(self, *words: str, where: str = "in the third terminal") -> str:
        """Run the next block, which must hold these words; what it prints."""
        text = self.next_block(where)
        assert all(word in text for word in words), text
        exported = re.findall(r"(?m)^export (\w+)=(.*)$", text)
        self._variables |= dict(exported)
        return self._typed(text)

    def _typed(self, text: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", text],
            capture_output=True,
            text=True,
            timeout=patience(60),
            env=self._variables,
            check=False,
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, where: str) -> Program:
        program, *arguments = shlex.split(self.next_block(where).replace("\\\n", " "))
        assert program == "gpu-agent"
        if "serve" in arguments:
            for option, port in (
                ("--node-listen", self._node_port),
                ("--operator-listen", self._operator_port),
            ):
                arguments += [option, f"127.0.0.1:{port}"]
        return Program(
            *(words.replace("127.0.0.1:8080", f"127.0.0.1:{self._node_port}") for words in arguments)
        )

    def is_at_the_end(self) -> bool:
        return next(self._blocks, None) is None


@pytest.mark.timeout(180)
def test_every_command_of_the_first_node_does_what_the_page_says(tmp_path: Path) -> None:
    tutorial = FirstNode(tmp_path)
    assert "H100 80GB HBM3" in tutorial.follow("probe", where="in the first terminal")
    said = tutorial.follow("probe", where="in the first terminal")
    assert "degraded" in said
    assert "lost" in said
    with ExitStack() as running:
        serving = running.enter_context(tutorial.start("in the first terminal, which it occupies"))
        serving.await_event("registry_listening", within_seconds=20)
        tutorial.follow("token create", where="in the second terminal")
        agent = running.enter_context(tutorial.start("in the second terminal, which it occupies"))
        tutorial.node = str(agent.await_event("node_registered", within_seconds=20)["node_id"])
        agent.await_event("node_status_changed", within_seconds=30, to="ready")
        assert "ready" in tutorial.follow("export")
        assert tutorial.node in tutorial.follow(tutorial.node)
        assert "job-1" in tutorial.follow("claim create", "claim list")
        assert "capacity_exceeded" in tutorial.follow("explain", "--gpus 8")
        assert tutorial.node in tutorial.follow(tutorial.node)
        assert "draining" in tutorial.follow("drain", tutorial.node)
        tutorial.follow("claim release")
        agent.await_event("node_status_changed", within_seconds=20, to="offline")
        said = tutorial.follow("resume", tutorial.node)
        assert said.index("drain_complete") < said.rindex("resumed")
        assert tutorial.is_at_the_end()
        agent.end()
        serving.end()


def test_the_table_names_every_error() -> None:
    errors = {
        name
        for name in client.__all__
        if isinstance(getattr(client, name), type) and issubclass(getattr(client, name), RegistryError)
    }
    section = page("client.md").split("## What a method raises\n", 1)[1]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == errors


def test_the_table_names_every_method_of_both_clients() -> None:
    methods = {name for name, one in vars(sync.RegistryClient).items() if callable(one) and name[0] != "_"}
    section = page("client.md").split("## What a client does\n", 1)[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)\(", cell)} == methods
    assert all(callable(getattr(client.RegistryClient, name)) for name in methods)


# The scheduler over a crash of the registry

JOB = "echo begin $CUDA_VISIBLE_DEVICES >> {log}; sleep {seconds}; echo end $CUDA_VISIBLE_DEVICES >> {log}"


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, ...]:
    return (
        *("--store", f"sqlite://{tmp_path}/registry.db", "--allow-simulated", "--max-cpu-percent=100"),
        *("--warmup-heartbeat-interval-seconds=0.2", "--heartbeat-interval-seconds=1"),
        *("--claim-ttl-seconds=6",),
    )


def lines_of(log: Path) -> Iterator[tuple[str, list[str]]]:
    for line in log.read_text().splitlines() if log.exists() else ():
        word, _, gpus = line.partition(" ")
        yield word, gpus.split(",")


@pytest.mark.timeout(180)
def test_the_scheduler_survives_kill_9_of_the_registry(tmp_path: Path, store: tuple[str, ...]) -> None:
    """Every job runs once and to its end, and no GPU is in two of them."""
    log = tmp_path / "log"
    jobs = [f"{gpus} {JOB.format(log=log, seconds=4)}" for gpus in (1, 1, 2, 1)]
    with ExitStack() as running:
        first = running.enter_context(Registry(*store))
        running.enter_context(Agent(first.node_url, tmp_path / "agent"))
        first.await_ready(1, within_seconds=20)
        scheduler = running.enter_context(
            subprocess.Popen(
                [sys.executable, str(ROOT / "examples" / "scheduler.py"), first.api],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert scheduler.stdin is not None
        scheduler.stdin.write("\n".join(jobs))
        scheduler.stdin.close()
        for _ in range(2):
            begun = len(list(lines_of(log)))
            eventually(lambda: len(list(lines_of(log))) > begun, within_seconds=30, what="jobs go on")  # noqa: B023 - called at once
            first.send(signal.SIGKILL)
            first.wait(patience(5))
            first = running.enter_context(
                Registry(*store, node_port=first.node_port, operator_port=first.operator_port)
            )
        assert scheduler.stdout is not None
        said = scheduler.stdout.read()
        assert scheduler.wait(patience(10)) == 0
        assert first.get("/v1/claims")["claims"] == []
    assert said.count("ended with 0") == len(jobs)
    assert "starts again" not in said
    in_use: set[str] = set()
    for word, gpus in lines_of(log):
        if word == "begin":
            assert not in_use & set(gpus), log.read_text()
            in_use |= set(gpus)
        else:
            in_use -= set(gpus)
    assert [word for word, _ in lines_of(log)].count("begin") == len(jobs)
