"""A real registry whose ports are encrypted, its agents, and the commands beside it, in one folder."""

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate
from tests.authority import Authority
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

QUICK = ("--heartbeat-interval-seconds=1", "--warmup-heartbeat-interval-seconds=0.3")


class EncryptedRegistry(Registry):
    """One with a certificate; what it says of itself is asked with the commands."""

    def __enter__(self) -> Self:
        listening = self.await_event("registry_listening", within_seconds=30)
        assert listening["encrypted"]
        self.node_url = f"wss://localhost:{listening['node_listen'].rsplit(':', 1)[1]}/ws/node"
        self.api = f"https://{listening['operator_listen']}"
        self.pin: str = listening["pin"]
        return self


class Encrypted:
    """A folder with a registry's state and certificate, and its agents'."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder, self.state = folder, folder / "registry"
        self.authority = Authority(folder / "authority")
        self.cert, self.key = folder / "registry.pem", folder / "registry.key"
        self.known = folder / "known.pem"
        """Whom the agents take for an authority."""
        self._running = running
        self.certify(self.authority)

    def certify(self, authority: Authority, *names: str, to_days: float = 90) -> str:
        """Have the registry's certificate be one of this authority's, and return the pin of its key."""
        issued = authority.issue(*names, to_days=to_days)
        put(issued, self.cert, self.key)
        return pin_of(read_certificate_file(self.cert))

    def trust(self, authority: Authority) -> None:
        shutil.copy(authority.file, self.known)

    def registry(
        self, *arguments: str, node_port: int = 0, operator_port: int = 0, encrypted: bool = True
    ) -> Registry:
        words = [*QUICK, "--state-dir", str(self.state), "--allow-simulated", *arguments]
        words += ["--store", f"sqlite://{self.folder / 'registry.db'}"]
        if encrypted:
            words += ["--tls-cert-file", str(self.cert), "--tls-key-file", str(self.key)]
        kind = EncryptedRegistry if encrypted else Registry
        made = kind(*words, auth="on", node_port=node_port, operator_port=operator_port)
        return self._running.enter_context(made)

    def agent(self, url: str, name: str, *arguments: str) -> Agent:
        """An agent that takes who is in `known` for an authority, unless its arguments name somebody else."""
        trusts = url.startswith("wss") and not {"--tls-pin", "--config"}.intersection(arguments)
        trust = ("--tls-ca-file", str(self.known)) if trusts else ()
        words = ("--join-token-file", str(self.folder / "join.token"), *trust, *arguments)
        return self._running.enter_context(Agent(url, self.folder / name, *words, simulate="1xT4-16GB"))

    def ask(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Ask this machine's own registry, as somebody beside it does."""
        own = {"PATH": "/usr/bin:/bin", "GPU_REGISTRY_STATE_DIR": str(self.state), **variables}
        return subprocess.run(
            [*COMMAND, "registry", *words],
            env=own,
            capture_output=True,
            text=True,
            timeout=patience(60),
            check=False,
        )

    def make_join_token(self) -> str:
        """Leave one in `join.token` that lets in as many as come."""
        made = self.ask("token", "create", "--uses", "any", "--out", str(self.folder / "join.token"))
        assert made.returncode == 0, made.stderr
        return (self.folder / "join.token").read_text().strip()

    def nodes(self) -> list[dict[str, Any]]:
        asked = self.ask("node", "list", "--json")
        assert asked.returncode == 0, asked.stderr
        nodes: list[dict[str, Any]] = json.loads(asked.stdout)["nodes"]
        return nodes

    def await_ready(self, count: int = 1, *, within_seconds: float = 40) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            ready = [node for node in self.nodes() if node["status"] == "ready" and node["connected"]]
            return ready if len(ready) >= count else None

        return eventually(look, within_seconds=within_seconds, what=f"{count} nodes ready")


def put(issued: OwnCertificate, cert: Path, key: Path) -> None:
    """Put a certificate in place of another, as a tool that renews them does."""
    assert issued.key_file is not None
    for made, place in ((issued.key_file, key), (issued.cert_file, cert)):
        made.replace(place)


def await_why(agent: Agent, words: str, *, within_seconds: float = 40) -> str:
    """Wait until an agent says that it backs off for this reason."""

    def look() -> str | None:
        reasons = [str(line["why"]) for line in agent.events("session_backing_off")]
        return next((why for why in reasons if words in why), None)

    try:
        return eventually(look, within_seconds=within_seconds, what=repr(words))
    except AssertionError as late:
        raise AssertionError(f"{late}; said: {agent.output()}") from None
