"""A real registry process under attack from its own machine, with real agents that must not notice.

The attackers are those of `benchmarks/hostile_nodes.py`, which does this for as long as one likes.
"""

import json
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(180),
]

ROOT = Path(__file__).parent.parent.parent
AGENTS = 3
RHYTHM = (
    "--heartbeat-interval-seconds=2",
    "--warmup-heartbeat-interval-seconds=0.5",
    "--heartbeat-timeout-seconds=12",
)
OFTEN_MEASURED = {"GPU_REGISTRY_PERFORMANCE_INTERVAL_SECONDS": "1"}
MOST_MEMORY_MB = 300
LONGEST_LAG_MS = 3000
"""On a machine that runs other tests beside; a heartbeat that is this late costs no node its status."""

WINDOWS = 2
"""Of a minute, that the attack and its end may touch."""

PRESENTING = ("odd headers", "odd targets", "bombs", "foreign heartbeats", "heartbeat flood", "come and go")
"""Attacks that show a token, or try to."""

VIOLATIONS = {
    "connection_failed",
    "foreign_heartbeat",
    "frame_malformed",
    "handshake_timed_out",
    "handshake_refused",
    "node_register_refused",
    "rate_limited",
}


@dataclass
class Besieged:
    """A registry with honest agents, and what it looked like before anybody attacked."""

    registry: Registry
    honest: set[str]

    def __post_init__(self) -> None:
        self.lines_before = len(self.registry.lines)
        self.files_before = self.open_files

    @property
    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.registry.pid}/fd").iterdir()))

    @property
    def most_memory_mb(self) -> float:
        status = Path(f"/proc/{self.registry.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def attacked(self, *, seconds: float, attacks: Sequence[str] = (), token: str | None = None) -> set[str]:
        """Let the attackers do their worst; what they met."""
        order = {"port": self.registry.node_port, "seconds": seconds, "victims": sorted(self.honest)}
        order |= {"token": token, "attacks": attacks} if attacks else {"token": token}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load.hostile", json.dumps(order)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout))

    def said_since(self, *events: str) -> list[dict[str, object]]:
        return [line for line in self.registry.lines[self.lines_before :] if line.get("event") in events]

    def assert_that_nobody_honest_noticed(self) -> None:
        changes = self.said_since("node_status_changed", "node_disconnected")
        assert [change for change in changes if change["node_id"] in self.honest] == []

    def assert_that_it_held(self) -> None:
        assert self.most_memory_mb < MOST_MEMORY_MB
        lags = [figures["loop_lag_ms"] for figures in self.said_since("performance")]
        assert max(float(str(lag)) for lag in lags) < LONGEST_LAG_MS
        eventually(
            lambda: self.open_files <= self.files_before,
            within_seconds=30,
            what=f"files given back; {self.open_files} are open, {self.files_before} were before",
        )
        errors = [line for line in self.registry.lines if line["level"] == "error"]
        assert errors == [], errors[0].get("traceback")
        assert self.registry.other == []

    def assert_that_it_told_of(self, offences: set[str]) -> None:
        said = Counter(
            (line["event"], line.get("code", line.get("status"))) for line in self.said_since(*VIOLATIONS)
        )
        assert offences <= {event for event, _ in said}
        assert {what: count for what, count in said.items() if count > WINDOWS} == {}


def besieged(running: ExitStack, registry: Registry, folder: Path, *arguments: str) -> Besieged:
    """Start honest agents and wait until all are ready."""
    for number in range(AGENTS):
        running.enter_context(
            Agent(registry.node_url, folder / f"agent-{number}", *arguments, simulate="1xT4-16GB")
        )

    def look() -> set[str] | None:
        changes = registry.events("node_status_changed")
        found = {str(change["node_id"]) for change in changes if change["to"] == "ready"}
        return found if len(found) == AGENTS else None

    return Besieged(registry, eventually(look, within_seconds=40, what="all agents ready"))


def test_with_auth_off_every_attack_at_once_costs_no_node_its_status(tmp_path: Path) -> None:
    with ExitStack() as running:
        registry = running.enter_context(Registry("--allow-simulated", *RHYTHM, environment=OFTEN_MEASURED))
        place = besieged(running, registry, tmp_path)
        place.attacked(seconds=15)
        place.assert_that_nobody_honest_noticed()
        place.assert_that_it_held()
        place.assert_that_it_told_of(VIOLATIONS)
        registry.send(signal.SIGTERM)
        registry.wait(patience(10))
    left_out: Counter[object] = Counter()
    for line in place.said_since("violations_suppressed"):
        left_out[line["violation"]] += int(str(line["count"]))
    assert min(left_out[violation] for violation in ("connection_failed", "handshake_refused")) > 10


def test_with_auth_on_no_invalid_token_is_accepted(tmp_path: Path) -> None:
    with ExitStack() as running:
        state = tmp_path / "registry"
        registry = running.enter_context(
            Registry(
                "--allow-simulated",
                "--state-dir",
                str(state),
                *RHYTHM,
                auth="on",
                environment=OFTEN_MEASURED,
            )
        )
        spent = join_token(registry, (state / "operator.token").read_text().strip())
        file = tmp_path / "join.token"
        file.write_text(spent)
        file.chmod(0o600)
        place = besieged(running, registry, tmp_path, "--join-token-file", str(file))
        met = place.attacked(seconds=4, attacks=PRESENTING, token=spent)
        assert {"bombs: HTTP 403", "heartbeat flood: HTTP 403"} <= met
        met = place.attacked(seconds=4, attacks=PRESENTING, token="gpun_00000000_" + "A" * 43)
        assert {"bombs: HTTP 401", "heartbeat flood: HTTP 401"} <= met
        place.assert_that_nobody_honest_noticed()
        place.assert_that_it_held()
        place.assert_that_it_told_of({"handshake_refused"})
        assert place.said_since("node_register_received") == []


def join_token(registry: Registry, operator: str) -> str:
    """A token that is used up once all honest agents have joined by it."""
    request = urllib.request.Request(  # noqa: S310 - loopback, ours
        f"{registry.api}/v1/tokens",
        data=json.dumps({"kind": "join", "ttl_seconds": 600, "uses": AGENTS}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {operator}"},
    )
    with urllib.request.urlopen(request, timeout=patience(5)) as answer:  # noqa: S310 - loopback, ours
        return str(json.load(answer)["token"])
