"""Plays histories: clients work while a nemesis kills or freezes one process, then what they saw is checked.

Several histories, one after the other, share one registry; each has job ids of its own. The same number and
seed draw the same jobs, clients and fault again.
"""

import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from tests.histories.clients import Address, Api, Caller, Client, NotSentError, Request
from tests.histories.network import Cut
from tests.histories.nodes import Nodes
from tests.histories.objects import Result, check
from tests.histories.record import History, JobKind, Machine, Outcome
from tests.histories.registries import CLAIM_TTL_SECONDS, Registry, Victim, WallClock
from tests.programs import eventually

FLEET = tuple(
    Machine(
        f"node-{letter}", tuple(f"GPU-{letter}{place}" for place in range(2)), memory_mb=80 << 10, slots=4
    )
    for letter in "abc"
)
KINDS = (
    JobKind(gpus=1),
    JobKind(gpus=2),
    JobKind(nodes=2, gpus=1),
    JobKind(gpus=1, memory_mb=30_000),
    JobKind(),
    JobKind(gpus=1, wait_seconds=0.2),
    JobKind(gpus=1, memory_mb=50_000, wait_seconds=0.3),
    JobKind(gpus=1, ttl_seconds=CLAIM_TTL_SECONDS),
    JobKind(nodes=2, gpus=2, wait_seconds=0.5),
)
READS = (0.2,) * 7 + (1.0,) * 2
"""By client: which share of its requests reads. Those that only read see a leader that is none any more."""
PAUSE_SECONDS = 0.02
BEFORE_SECONDS = (0.2, 0.8)
AFTER_SECONDS = 0.6
"""The clients work so long once the fault is over."""
TIMEOUTS_SECONDS = (0.4, 1.0, 10.0)
"""Of clients: a short one makes many outcomes unknown, a long one sees answers that come late."""
OTHERS_SHARE = 0.5
"""How often the fault hits another process than the one that decides, where there are others."""
CUT_SHARE = 0.7
"""How often the network is cut, where it can be."""
CLOCK_SHARE = 0.15
"""How often a clock is set, by up to twelve days."""
BACK_SECONDS = 40.0
"""Within this time a registry answers, and its nodes are back."""


Fault = Callable[[Registry, random.Random], str]
"""Does something to a registry; returns what, for people."""


def kill(victim: Victim) -> str:
    """Kill with -9 and start again."""
    victim.send(signal.SIGKILL)
    victim.restart()
    return f"kill -9 {victim.name}"


def freeze(victim: Victim, seconds: float) -> str:
    victim.send(signal.SIGSTOP)
    time.sleep(seconds)
    victim.send(signal.SIGCONT)
    return f"freeze {victim.name} for {seconds:.1f} s"


def set_clock(victim: Victim, clock: WallClock, seconds: float) -> str:
    clock.set_ahead(seconds)
    time.sleep(AFTER_SECONDS)
    clock.set_ahead(0)
    return f"set the clock of {victim.name} by {seconds:+.0f} s"


def cut_network(cut: Cut, seconds: float) -> str:
    with cut.applied():
        time.sleep(seconds)
    return f"cut {cut.name} for {seconds:.1f} s"


def draw_fault(registry: Registry, dice: random.Random, longest_seconds: float) -> str:
    """Do to the registry what the dice say; returns what was done."""
    cuts = registry.cuts()
    if cuts and dice.random() < CUT_SHARE:
        return cut_network(dice.choice(cuts), dice.uniform(1.0, longest_seconds))
    first, *others = registry.victims()
    victim = dice.choice(others) if others and dice.random() < OTHERS_SHARE else first
    draw = dice.random()
    if victim.clock is not None and draw < CLOCK_SHARE:
        return set_clock(victim, victim.clock, dice.choice((-1, 1)) * 10 ** dice.uniform(0, 6))
    if draw < (1 + CLOCK_SHARE) / 2:
        return kill(victim)
    return freeze(victim, dice.uniform(1.0, longest_seconds))


@dataclass(frozen=True, slots=True)
class Played:
    """One history, what the nemesis did, and how it was judged."""

    history: History
    fault: str
    seconds: float
    result: Result

    def __str__(self) -> str:
        count, result = self.history.count, self.result
        unknown, refused = count(Outcome.UNKNOWN), count(Outcome.NONE, Outcome.OTHER)
        done = len(self.history.operations) - unknown - refused
        verdict = "linearizable"
        if result.violations:
            verdict = f"{len(result.violations)} violations"
        elif result.undecided:
            verdict = f"undecided: {', '.join(result.undecided)}"
        return (
            f"{self.fault}, {self.seconds:.1f} s, {done} done, {refused} refused, {unknown} unknown; "
            f"{result.partitions} objects in {result.steps} steps: {verdict}"
        )


class Stage:
    """One registry and its nodes, for several histories."""

    def __init__(self, registry: Registry, running: ExitStack, *, seed: int) -> None:
        self._registry = registry
        self._api = Api(timeout_seconds=10)
        nodes = Nodes(FLEET, registry.node_urls, seed=seed)
        nodes.start()
        running.callback(nodes.stop)
        running.callback(self._api.close)
        self._world = nodes.world

    def play(self, number: int, *, seed: int, fault: Fault) -> Played:
        """Play the history of this number and judge it."""
        dice = random.Random(f"{seed}:{number}")
        self.free_fleet()
        kinds = (*KINDS, *dice.choices(KINDS, k=3))
        history = History({f"h{number}-{place}": kind for place, kind in enumerate(kinds)}, FLEET)
        clients = [
            Client(
                self._caller(f"client-{place}", history, dice),
                self._world,
                pause_seconds=PAUSE_SECONDS,
                reads=reads,
            )
            for place, reads in enumerate(READS)
        ]
        for client in clients:
            client.start()
        time.sleep(dice.uniform(*BEFORE_SECONDS))
        done = fault(self._registry, dice)
        self._await_nodes()
        time.sleep(AFTER_SECONDS)
        for client in clients:
            client.stop()
        for client in clients:
            client.join()
        self._look_last(history, dice)
        return Played(history, done, time.monotonic() - history.began, check(history))

    def _caller(self, name: str, history: History, dice: random.Random) -> Caller:
        own = random.Random(dice.random())
        return Caller(name, history, self._registry.api, own, timeout_seconds=dice.choice(TIMEOUTS_SECONDS))

    def _look_last(self, history: History, dice: random.Random) -> None:
        """Read everything once more from each address, when all clients have ended."""
        caller = self._caller("last", history, dice)
        for address in self._registry.api:
            caller.list(address)
            for job in history.jobs:
                caller.show(job, address)
        caller.api.close()

    def free_fleet(self) -> None:
        """Release what earlier histories left behind, until nothing is left and every node is ready."""
        self._world.clear()
        eventually(self._is_free, within_seconds=BACK_SECONDS, what="a fleet without claims")
        self._await_nodes()

    def _is_free(self) -> bool:
        """Release each claim that reserves or holds something; True where there was none."""
        is_free = True
        after: str | None = ""
        while after is not None:
            page = self._ask(Request("GET", f"/v1/claims?ended=true{after and f'&after={after}'}"))
            if page is None:
                return False
            for one in page["claims"]:
                if one["state"] in ("active", "held"):
                    is_free = False
                    self._ask(Request("DELETE", f"/v1/claims/{one['job_id']}?claim_id={one['claim_id']}"))
            after = page["next"]
        return is_free

    def _await_nodes(self) -> None:
        eventually(self._has_nodes, within_seconds=BACK_SECONDS, what="every node is ready")

    def _has_nodes(self) -> bool:
        """Whether one address shows every node: one that is not served shows none."""
        for address in self._registry.api:
            page = self._ask(Request("GET", "/v1/nodes"), address) or {"nodes": []}
            ready = [one for one in page["nodes"] if one["status"] == "ready" and one["connected"]]
            if len(ready) == len(FLEET):
                return True
        return False

    def _ask(self, request: Request, *addresses: Address) -> dict[str, Any] | None:
        """Ask the first address that answers, of these or of all; None where none does."""
        for address in addresses or self._registry.api:
            with suppress(NotSentError, OSError, HTTPException, ValueError):
                answer = self._api.ask(address, request)
                if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return answer.document
        return None
