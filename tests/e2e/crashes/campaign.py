"""Kills a real `registry serve` at chosen points, many times, under live agents and a working scheduler.

After each death a new process opens the same database, and the operator API must show each
thing in a state that was acknowledged last, or asked for without an answer. Run it as
`make crashes KILLS=200`; a loss ends it with the seed that repeats it.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.crashes.door import Door, NoAnswerError
from tests.e2e.crashes.ledger import Ledger, Loss, State
from tests.e2e.crashes.trap import Point, Trap
from tests.e2e.crashes.workload import Workload
from tests.programs import Agent, Registry, eventually, free_port
from tests.waiting import patience

CLAIMABLE, OPERATED = 3, 2
ARMED_AT_MOST = {Point.CHECKPOINT: 40}
ARMED_USUALLY_AT_MOST = 150
WORK_SECONDS = 6.0
"""A trap that was not reached by then is replaced by a kill from outside."""

QUICK = (
    "--allow-simulated",
    "--warmup-heartbeat-interval-seconds=0.2",
    "--claim-ttl-seconds=86400",
    "--heartbeat-timeout-seconds=300",
)


@dataclass(slots=True)
class Tally:
    """What a campaign came to."""

    kills: dict[Point, int] = field(default_factory=lambda: dict.fromkeys(Point, 0))
    missed_traps: int = 0
    acknowledged: int = 0
    losses: list[Loss] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {point.name.lower()}" for point, count in self.kills.items())
        return (
            f"{sum(self.kills.values())} kills ({kills}; {self.missed_traps} of them from outside because "
            f"the trap was not reached), {self.acknowledged} acknowledgements, {len(self.losses)} lost, "
            f"{len(self.errors)} unexpected answers"
        )


class Campaign:
    """One database, one registry after the other, five agents."""

    def __init__(self, folder: Path, running: ExitStack, *, seed: int) -> None:
        self._folder, self._running = folder, running
        self._dice = random.Random(seed)  # noqa: S311
        self._ports = {"node_port": free_port(), "operator_port": free_port()}
        self._trap = Trap(folder)
        self._ledger = Ledger()
        self.tally = Tally()
        self._registry = self._serve()
        self._admin = (folder / "state" / "operator.token").read_text().strip()
        self._door = Door(self._ports["operator_port"], self._admin)
        nodes = self._join()
        self._workload = Workload(
            self._ledger,
            port=self._ports["operator_port"],
            admin=self._admin,
            claimable=nodes[:CLAIMABLE],
            operated=nodes[CLAIMABLE:],
        )

    def kill(self, point: Point) -> None:
        """Let the registry die once at such a point, start the next one, and compare."""
        if self._dice.random() < 0.8:
            self._await_a_place()
        self._trap.arm(point, after=self._dice.randint(1, ARMED_AT_MOST.get(point, ARMED_USUALLY_AT_MOST)))
        registry = self._registry
        seconds = self._dice.uniform(0.0, 1.0) if point is Point.ANY_INSTANT else WORK_SECONDS
        self._workload.run_until(
            lambda: registry.ended, seed=self._dice.getrandbits(32), within_seconds=seconds
        )
        if not registry.ended:
            self.tally.missed_traps += point is not Point.ANY_INSTANT
            registry.send(signal.SIGKILL)
        code = registry.wait(patience(10))
        assert code == -signal.SIGKILL, f"ended with {code} by itself: {registry.output()}"
        self._trap.disarm()
        self.tally.kills[point] += 1
        self._begin_again(point)
        self._compare()

    def _begin_again(self, point: Point) -> None:
        """Start the next registry; now and then it is killed while it starts."""
        while point is Point.ANY_INSTANT and self._dice.random() < 0.3:
            starting = self._running.enter_context(self._program())
            time.sleep(self._dice.uniform(0.05, 0.9))
            starting.send(signal.SIGKILL)
            starting.wait(patience(10))
        self._registry = self._serve()

    def _program(self) -> Registry:
        return Registry(
            "--store",
            f"sqlite://{self._folder / 'state' / 'registry.db'}",
            "--state-dir",
            str(self._folder / "state"),
            *QUICK,
            auth="on",
            environment={**self._trap.environment, "GPU_REGISTRY_HEALTHY_HEARTBEATS_NEEDED": "1"},
            **self._ports,
        )

    def _serve(self) -> Registry:
        program = self._program()
        self._running.enter_context(program)
        program.await_event("registry_listening", within_seconds=30)
        return program

    def _join(self) -> list[str]:
        count = CLAIMABLE + OPERATED
        made = self._door.ask("POST", "/v1/tokens", {"kind": "join", "uses": count, "ttl_seconds": 3600})
        assert made.granted, made
        token_file = self._folder / "join.token"
        token_file.write_text(made.document["token"])
        token_file.chmod(0o600)
        url = f"ws://127.0.0.1:{self._ports['node_port']}/ws/node"
        for number in range(count):
            state = self._folder / f"agent-{number}"
            more = ("--join-token-file", str(token_file))
            self._running.enter_context(Agent(url, state, *more, simulate="4xT4-16GB"))

        def all_ready() -> list[str] | None:
            nodes = self._door.ask("GET", "/v1/nodes").document["nodes"]
            ready = sorted(node["node_id"] for node in nodes if node["status"] == "ready")
            return ready if len(ready) == count else None

        return eventually(all_ready, within_seconds=60, what=f"{count} nodes ready")

    def _await_a_place(self) -> None:
        """Wait until the agents are back, so that claims are granted while the trap is set."""

        def ready() -> bool:
            try:
                nodes = self._door.ask("GET", "/v1/nodes?status=ready").document["nodes"]
            except NoAnswerError:
                return False
            return any(node["connected"] for node in nodes)

        eventually(ready, within_seconds=60, what="an agent back and ready")

    def _compare(self) -> None:
        losses = self._ledger.compare(self._seen())
        for thing in self._ledger.things("claim/"):
            if self._ledger.only(thing) is None:
                self._ledger.forget(thing)  # released, and never claimed again
        self.tally.losses += losses
        self.tally.acknowledged = self._ledger.acknowledged
        self.tally.errors += self._workload.errors
        self._workload.errors = []

    def _seen(self) -> dict[str, State]:
        """What the API shows of each thing in the ledger."""
        seen: dict[str, State] = {}
        held = {claim["job_id"]: claim["node_id"] for claim in self._all_claims()}
        for thing in self._ledger.things("claim/"):
            seen[thing] = held.get(thing.removeprefix("claim/"))
        for action in ("drained", "cordoned"):
            for thing in self._ledger.things(f"{action}/"):
                node = self._door.ask("GET", f"/v1/nodes/{thing.removeprefix(f'{action}/')}").document
                drain = node["drain"]
                seen[thing] = node["cordoned"] if action == "cordoned" else drain and drain["reason"]
        for thing in self._ledger.things("token/"):
            token_id = thing.removeprefix("token/")
            secret = self._workload.secrets[token_id]
            status = self._door.ask("GET", "/v1/thresholds", token=secret).status
            seen[thing] = "live" if status == 200 else "gone"
        return seen

    def _all_claims(self) -> list[dict[str, str]]:
        claims: list[dict[str, str]] = []
        path = "/v1/claims"
        while True:
            document = self._door.ask("GET", path).document
            claims += document["claims"]
            if not document.get("next"):
                return claims
            path = f"/v1/claims?after={document['next']}"


def run(
    kills: int,
    *,
    seed: int,
    points: tuple[Point, ...] = tuple(Point),
    report: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Kill a registry so many times at each of these points; `report` receives each round's tally."""
    with tempfile.TemporaryDirectory(prefix="gpu-agent-crashes-") as folder, ExitStack() as running:
        campaign = Campaign(Path(folder), running, seed=seed)
        for _ in range(kills):
            for point in points:
                campaign.kill(point)
                if campaign.tally.losses:
                    return campaign.tally
            report(campaign.tally)
        return campaign.tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many at each point (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tally = run(arguments.kills, seed=arguments.seed, report=lambda tally: print(tally, file=sys.stderr))
    print(tally)
    for loss in tally.losses:
        print(f"LOST {loss}")
    for error in sorted(set(tally.errors))[:20]:
        print(f"UNEXPECTED {error}")
    return 1 if tally.losses or tally.errors else 0


if __name__ == "__main__":
    sys.exit(main())
