"""An operator's day, on the command line alone: a true registry that asks for tokens, and a true agent."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.declaration import Group
from gpu_agent.cli.groups import REGISTRY
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ELSEWHERE = {"serve", "backup", "restore", "claim run", "event follow", "notify list", "notify test"}
"""Tried by tests of their own."""
NOUNS = {name: one for name, one in REGISTRY.entries.items() if isinstance(one, Group)}
"""Words before actions."""


class Operator:
    """An operator who types commands; records which."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder = folder
        self.registry = registry
        self.typed: set[str] = set()

    def run(self, *words: str, code: int = 0, token_file: str | None = None) -> str:
        """Run `registry WORDS`, see how it ends, and return what it prints."""
        self.typed.add(" ".join(words[: 2 if words[0] in NOUNS else 1]))
        where = ["--server", self.registry.api]
        where += [] if token_file is None else ["--token-file", str(self.folder / token_file)]
        done = subprocess.run(
            [*COMMAND, "registry", *words, *where],
            env={**os.environ, "GPU_REGISTRY_STATE_DIR": str(self.folder / "registry")},
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def ask(self, *words: str) -> dict[str, Any]:
        """Run a command with `--json` and read its answer."""
        answer: dict[str, Any] = json.loads(self.run(*words, "--json"))
        return answer

    def node(self) -> dict[str, Any]:
        (node,) = self.ask("node", "list")["nodes"]
        return dict(node)

    def await_status(self, status: str) -> dict[str, Any]:
        """Look until the one node has this status and a connection."""

        def look() -> dict[str, Any] | None:
            nodes = self.ask("node", "list", "--status", status)["nodes"]
            return next((node for node in nodes if node["connected"]), None)

        return eventually(look, within_seconds=30, what=status)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def agent(operator: Operator, name: str, *arguments: str) -> Agent:
    """An agent with a join token of its own file, and a model."""
    configuration = operator.folder / "agent.toml"
    configuration.write_text('[[declared_models]]\nmodel_id = "m"\nversion = "1"\nkind = "asr"\n')
    token = str(operator.folder / f"{name}.token")
    return Agent(
        operator.registry.node_url,
        operator.folder / name,
        *("--join-token-file", token, "--config", str(configuration), *arguments),
    )


def test_every_action_does_what_it_says(tmp_path: Path, running: ExitStack) -> None:
    busy = ("--max-cpu-percent", "100", "--max-memory-percent", "100")  # this machine may be
    registry = running.enter_context(
        Registry("--state-dir", str(tmp_path / "registry"), "--allow-simulated", *busy, auth="on")
    )
    operator = Operator(tmp_path, registry)
    assert "No node is registered" in operator.run("node", "list")

    # A node joins by a token, with labels that it cannot choose itself.
    operator.run("token", "create", "--label", "team=red", "--out", str(tmp_path / "first.token"))
    with agent(operator, "first") as first:
        first.await_event("node_registered", within_seconds=20)
        node_id = str(operator.await_status("ready")["node_id"])
        assert [token["state"] for token in operator.ask("token", "list")["tokens"]] == ["live", "used_up"]
        _look(operator, node_id)
        _place_jobs(operator, node_id)
        _orders(operator, node_id)

    # It loses its state, and has its id back.
    token = operator.run("node", "readmit", node_id)
    assert token.startswith("gpuj_")
    (tmp_path / "second.token").write_text(token)
    with agent(operator, "second"):
        assert operator.await_status("ready")["node_id"] == node_id
        _ends(operator, node_id)

    actions = {name for name in REGISTRY.entries if name not in NOUNS}
    actions |= {f"{noun} {name}" for noun, group in NOUNS.items() for name in group.entries}
    assert operator.typed == actions - ELSEWHERE


def _look(operator: Operator, node_id: str) -> None:
    page = operator.run("node", "show", node_id)
    for words in ("ready", "team=red (granted)", "2x L4", "token", "CHECK", "→ ready"):
        assert words in page
    assert f"did you mean {node_id}" in operator.run("node", "show", node_id[:-1], code=6)
    assert operator.ask("explain", "node", node_id, "--model", "m")["model"]["ready"] is True
    assert "takes jobs" in operator.run("explain", "node", node_id)
    assert operator.ask("event", "list", node_id)["events"]
    assert "leader" in operator.run("members")
    assert "/signin?code=" in operator.run("page")
    assert [member["nodes"] for member in operator.ask("members")["members"]] == [1]
    assert f"{node_id}  registering → ready" in operator.run("event", "list")
    assert operator.ask("settings")["thresholds"]
    assert "claim_ttl_seconds" in operator.run("settings")


def _place_jobs(operator: Operator, node_id: str) -> None:
    demands = ("--model", "m", "--gpus", "2", "--label", "team=red")
    assert operator.ask("explain", "job", "--pick", *demands)["node_id"] == node_id
    assert operator.ask("explain", "job", *demands)["eligible"] == [node_id]
    assert node_id in operator.run("claim", "create", "job/1", *demands)
    assert operator.ask("claim", "create", "job/1", *demands)["job_id"] == "job/1"
    assert "job/1" in operator.run("claim", "list", "--node", node_id)
    assert operator.ask("claim", "renew", "job/1")["node_id"] == node_id
    assert "active" in operator.run("claim", "show", "job/1")
    assert "capacity_exceeded" in operator.run("explain", "job", *demands)
    assert operator.ask("queue")["count"] == 0
    operator.run("claim", "release", "job/1")
    assert operator.ask("claim", "list")["claims"] == []
    assert "model_not_available" in operator.run(
        "claim", "create", "job-2", "--model", "absent/model", code=7
    )
    assert operator.ask("explain", "exclusions")["windows"][-1]["counts"] == {"model_not_available": 1}
    assert "model_not_available" in operator.run("explain", "exclusions")


def _orders(operator: Operator, node_id: str) -> None:
    operator.run("node", "cordon", node_id, "--reason", "odd noise")
    assert "cordoned: odd noise" in operator.run("node", "list")
    assert "cordoned" in operator.run("explain", "job", "--pick", code=7)
    operator.run("node", "uncordon", node_id)
    uuid = operator.ask("node", "show", node_id)["gpus"][0]["uuid"]
    operator.run("node", "cordon", node_id, "--gpu", uuid, "--reason", "ECC errors")
    assert "ECC errors" in operator.ask("node", "show", node_id)["gpus"][0]["cordoned"]
    operator.run("node", "uncordon", node_id, "--gpu", uuid)
    operator.run("node", "refresh", node_id)
    operator.run("node", "check", node_id)
    epoch = operator.ask("node", "show", node_id)["session_epoch"]
    operator.run("node", "reregister", node_id)
    eventually(
        lambda: operator.ask("node", "show", node_id)["session_epoch"] > epoch,
        within_seconds=15,
        what="a new session",
    )
    operator.run("token", "rotate", node_id)
    assert operator.ask("node", "show", node_id)["token"]["rotating"] is True
    operator.await_status("ready")
    assert "is offline" in operator.run(
        "node", "drain", node_id, "--deadline", "1m", "--reason", "fans", "--wait"
    )
    operator.run("node", "resume", node_id)
    operator.await_status("ready")


def _ends(operator: Operator, node_id: str) -> None:
    reader = str(operator.folder / "reader.token")
    operator.run("token", "create", "--operator", "read", "--name", "bob", "--out", reader)
    operator.run("node", "list", token_file="reader.token")
    assert "role operate" in operator.run("node", "drain", node_id, code=6, token_file="reader.token")
    live = [token for token in operator.ask("token", "list")["tokens"] if token["name"] == "bob"]
    operator.run("token", "revoke", live[0]["token_id"])
    assert "does not know the token" in operator.run("node", "list", code=6, token_file="reader.token")
    assert "With it go:" in operator.run("node", "remove", node_id, "--yes")
    assert operator.ask("node", "list")["nodes"] == []
