"""A registry and its agent on one booted machine, as an operator there looks at them."""

import json
from typing import Any

from tests.system.machine import Machine

AGENT = "gpu-agent.service"
REGISTRY = "gpu-registry.service"


class Site:
    """Asks the registry of a machine by the operators' own command."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def registry(self, *words: str) -> dict[str, Any] | None:
        """What `gpu-agent registry ... --json` prints; None while the registry does not answer."""
        done = self.machine.run("gpu-agent", "registry", *words, "--json", check=False)
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
        return answer

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes; none while the registry does not answer."""
        answer = self.registry("node", "list")
        nodes: list[dict[str, Any]] = [] if answer is None else answer["nodes"]
        return nodes

    def node(self, node_id: str) -> dict[str, Any]:
        """One node in full."""
        answer = self.registry("node", "show", node_id)
        assert answer is not None, self.machine.log_end()
        return answer

    def answers(self) -> bool:
        """True where the registry answers."""
        return self.registry("node", "list") is not None

    def ready(self) -> dict[str, Any] | None:
        """The node that is ready and connected."""
        return next((node for node in self.nodes() if node["status"] == "ready" and node["connected"]), None)

    def await_ready(self, *, within_seconds: float = 60) -> dict[str, Any]:
        """The node that is ready and connected, waited for."""
        return self.machine.until(self.ready, within_seconds=within_seconds, what="a node that is ready")

    def await_status(self, node_id: str, status: str, *, within_seconds: float = 60) -> dict[str, Any]:
        """A node with that status, waited for."""
        return self.machine.until(
            lambda: next((n for n in self.nodes() if (n["node_id"], n["status"]) == (node_id, status)), None),
            within_seconds=within_seconds,
            what=f"{node_id} that is {status}",
        )

    def install(self, folder: str) -> str:
        """Install all packages of a folder there, or upgrade to them; what the maintainer's scripts said."""
        words = ("dpkg", "--install", "--force-confold")
        files = sorted(f"{folder}/{file.name}" for file in self.machine.path(folder).glob("*.deb"))
        return self.machine.run(*words, *files, within_seconds=180).stdout

    def await_another_process(self, unit: str, before: int, *, within_seconds: float) -> int:
        """Wait until the unit is active again, in another process; its number."""
        self.machine.until(
            lambda: (
                self.machine.main_pid(unit) not in (0, before)
                and self.machine.show(unit, "ActiveState") == "active"
            ),
            within_seconds=within_seconds,
            what=f"another process of {unit} than {before}",
        )
        return self.machine.main_pid(unit)

    def hand_over_a_join_token(self) -> None:
        """Put a fresh join token to where systemd finds it for the agent."""
        token = "/etc/gpu-agent/join-token"
        self.machine.run("rm", "-f", token)
        self.machine.run("gpu-agent", "registry", "token", "create", "--out", token)
