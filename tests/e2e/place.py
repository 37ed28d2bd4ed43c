"""A registry and its agents in one folder, with what operators do there, and every secret that was."""

import json
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.programs import COMMAND, Agent, Program, Registry, eventually
from tests.waiting import patience

PLAIN = {"PATH": "/usr/bin:/bin"}
"""An environment in which nothing of ours is set."""


class Place:
    """A folder with a registry's state and its agents', and all that was ever secret there."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder = folder
        self.state = folder / "registry"
        self.secrets: set[str] = set()
        self._programs: list[Program] = []
        self._running = running

    def registry(self, *arguments: str, node_port: int = 0, operator_port: int = 0) -> Registry:
        registry = Registry(
            *("--state-dir", str(self.state), "--allow-simulated", *arguments),
            auth="on",
            node_port=node_port,
            operator_port=operator_port,
        )
        self._programs.append(registry)
        started = self._running.enter_context(registry)
        self.secrets.add(self.operator_token)
        return started

    def agent(self, registry: Registry, name: str, *, join_token: str | None = None) -> Agent:
        arguments: list[str] = []
        if join_token is not None:
            file = self.folder / f"{name}.token"
            file.write_text(join_token)
            arguments = ["--join-token-file", str(file)]
            self.secrets.add(join_token)
        agent = Agent(registry.node_url, self.folder / name, *arguments, simulate="1xT4-16GB")
        self._programs.append(agent)
        return self._running.enter_context(agent)

    @property
    def operator_token(self) -> str:
        return (self.state / "operator.token").read_text().strip()

    def node_token(self, name: str) -> str:
        identity = json.loads((self.folder / name / "identity.json").read_text())
        return str(identity["node_token"])

    def ask(
        self, registry: Registry, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask the operators' API as the admin, or with another token; the status and what it says."""
        request = urllib.request.Request(  # noqa: S310 - loopback, ours
            registry.api + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {token or self.operator_token}")
        try:
            with urllib.request.urlopen(request, timeout=patience(5)) as answer:  # noqa: S310 - loopback, ours
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())

    def make(self, registry: Registry, **asked: object) -> dict[str, Any]:
        """Have a token made."""
        status, made = self.ask(registry, "POST", "/v1/tokens", asked)
        assert status == 201, made
        self.secrets.add(made["token"])
        return made

    def join_token(self, registry: Registry) -> str:
        return str(self.make(registry, kind="join")["token"])

    def nodes(self, registry: Registry) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.ask(registry, "GET", "/v1/nodes")[1]["nodes"]
        return nodes

    def await_ready(self, registry: Registry, *, within_seconds: float = 20) -> dict[str, Any]:
        """The one node that is ready and connected."""

        def look() -> dict[str, Any] | None:
            ready = [n for n in self.nodes(registry) if n["status"] == "ready" and n["connected"]]
            return ready[0] if ready else None

        return eventually(look, within_seconds=within_seconds, what=f"ready: {self.nodes(registry)}")

    def shown(self) -> str:
        """All that the programs have said, and the words that they were started with."""
        said = [json.dumps(program.lines) + "".join(program.other) for program in self._programs]
        return "\n".join([*said, *(" ".join(map(str, program.words)) for program in self._programs)])


def operators(place: Place, *command: str) -> None:
    """Do what an operator on the registry's machine does."""
    own = {**PLAIN, "GPU_REGISTRY_STATE_DIR": str(place.state)}
    subprocess.run([*COMMAND, "registry", *command], env=own, check=True, timeout=patience(30))


def made_by_command(place: Place, registry: Registry, *command: str) -> str:
    """A token as an operator on the registry's machine has it made."""
    file = place.folder / "made.token"
    operators(place, *command, "--out", str(file), "--server", registry.api)
    return file.read_text().strip()
