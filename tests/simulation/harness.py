"""One world, played from its seed to its end. The same seed always plays alike."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.simulation.actors import Operators, RequestSender, Scheduler, TokenAdministrator
from tests.simulation.agents import Agent
from tests.simulation.cluster import Cluster
from tests.simulation.disk import Medium, MemoryMedium, SimulatedDisk, SqliteMedium
from tests.simulation.event_loop import simulated_threads
from tests.simulation.fault_injection import FaultInjector
from tests.simulation.fault_profile import Fault, FaultProfile, profile_for, profile_of
from tests.simulation.gateways import Gateways
from tests.simulation.host import SimulatedHost, SimulatedStateDir
from tests.simulation.invariants.base import Invariant, InvariantError, Observers
from tests.simulation.invariants.claims import CapacityInvariants, ClaimInvariants, ReasonInvariants
from tests.simulation.invariants.desired_state import DesiredStateInvariants, OwnDrainInvariants
from tests.simulation.invariants.sessions import AgentInvariants, CredentialInvariants, SessionInvariants
from tests.simulation.invariants.statuses import (
    CheckInvariants,
    FlappingInvariants,
    TimeoutInvariants,
    TransitionInvariants,
)
from tests.simulation.invariants.storage import (
    EventInvariants,
    OutageInvariants,
    StoreFirstInvariants,
    StoreInvariants,
)
from tests.simulation.invariants.takeovers import TakeoverInvariants
from tests.simulation.network import Network
from tests.simulation.registry_process import RegistryProcess
from tests.simulation.settling import Settling
from tests.simulation.world import Trace, World

_GLANCE_SECONDS = 5.0
_ARRIVE_WITHIN_SECONDS = 10.0
_WAKES_WITHIN_SECONDS = 1.0
"""A registry that stood still may take so long to hear what waits before it judges."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a seed went."""

    seed: int
    mark: str
    """The trace in one number."""
    broken: InvariantError | None
    trace: Trace


def run_seed(seed: int, profile: FaultProfile | None = None, *, whole_trace: bool = False) -> RunResult:
    """Play a seed's world; a broken invariant ends it."""
    trace = Trace(whole=whole_trace)
    broken: InvariantError | None = None
    profile = profile or profile_of(seed)
    try:
        with simulated_threads(), _medium(profile) as medium:
            _Stage(seed, profile, trace=trace, medium=medium).run()
    except InvariantError as error:
        broken = error
    except Exception as error:  # noqa: BLE001 - whatever a machine raises is what is looked for
        broken = InvariantError(Invariant.NO_CRASH, f"{type(error).__name__}: {error}")
        broken.__cause__ = error
    return RunResult(seed, trace.mark, broken, trace)


@contextmanager
def _medium(profile: FaultProfile) -> Iterator[Medium]:
    """Lend a disk: a true file where the profile wants one."""
    if not profile.sqlite:
        yield MemoryMedium()
        return
    with TemporaryDirectory() as folder:
        medium = SqliteMedium(Path(folder), Random(profile.nodes))
        try:
            yield medium
        finally:
            medium.close()


class _Stage:
    """Sets a world up and runs it."""

    def __init__(self, seed: int, profile: FaultProfile, *, trace: Trace, medium: Medium) -> None:
        world = self._world = World(seed, trace=trace)
        network = Network(world, most_seconds_on_the_way=profile.most_seconds_on_the_way)
        disk = SimulatedDisk(world, medium, quick_seconds=profile.commit_seconds)
        gateways = Gateways(world, network, profile) if profile.gateways else None
        registry = RegistryProcess(world, profile, network=gateways or network, disk=disk)
        network.serve(gateways or registry)
        if gateways is not None:
            gateways.lead_by(registry)
        cluster = self._cluster = Cluster(world, profile, network, registry, gateways)
        desired, sessions, credentials = (
            DesiredStateInvariants(cluster),
            SessionInvariants(cluster),
            CredentialInvariants(cluster),
        )
        self._observer = Observers(
            (
                sessions,
                TransitionInvariants(cluster),
                desired,
                OwnDrainInvariants(cluster),
                credentials,
                ClaimInvariants(cluster),
                CapacityInvariants(cluster, desired),
                StoreFirstInvariants(cluster),
                EventInvariants(),
                StoreInvariants(),
                OutageInvariants(cluster),
                FlappingInvariants(cluster),
                CheckInvariants(cluster),
                TimeoutInvariants(cluster),
                ReasonInvariants(cluster),
                AgentInvariants(),
                TakeoverInvariants(cluster),
            )
        )
        registry.observer = self._observer
        cluster.agents += [self._agent(number) for number in range(profile.nodes)]
        sender = RequestSender(world, registry)
        self._scheduler = Scheduler(cluster, sender)
        self._administrator = TokenAdministrator(cluster, sender)
        self._injector = FaultInjector(
            cluster, Operators(cluster, sender), scheduler=self._scheduler, administrator=self._administrator
        )
        self._ending = Settling(cluster, sessions, credentials=credentials, administrator=self._administrator)

    def run(self) -> None:
        """Play: arrival, faults, peace, and one restart more."""
        world, cluster = self._world, self._cluster
        cluster.registry.start()
        for agent in cluster.agents:
            world.after(world.dice.uniform(0.0, _ARRIVE_WITHIN_SECONDS), agent.start)
        self._administrator.open()
        self._scheduler.start()
        self._injector.begin()
        self._every(_GLANCE_SECONDS, self._glance)
        world.run_until(cluster.profile.fault_seconds)
        self._scheduler.stop()
        self._injector.end()
        self._ending.settle()
        self._glance()
        self._ending.restart()

    def _agent(self, number: int) -> Agent:
        profile, world = self._cluster.profile, self._world
        name = f"agent-{number + 1}"
        host = SimulatedHost(name, world.dice, announces_jobs=world.chance(2 / 3))
        host.runs_checks = Fault.CHECK in profile.faults and number % 4 != 0  # the others are older
        if Fault.MIG in profile.faults:
            host.parted = {place for place in host.partable if world.chance(1 / 2)}
        agent = Agent(
            host, SimulatedStateDir(), world=world, network=self._cluster.network, wire=profile.wire
        )
        agent.observer = self._observer
        return agent

    def _glance(self) -> None:
        registry = self._cluster.registry
        if registry.running and registry.busy_until + _WAKES_WITHIN_SECONDS <= self._world.now:
            self._observer.check_all()

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        do()
        self._world.after(seconds, lambda: self._every(seconds, do))


# How seeds went, for a person: what broke, what led to it, and the one command that plays it again.


TAIL_LINES = 60


@dataclass(frozen=True, slots=True)
class Report:
    """The report of one seed; small, so that it travels between processes."""

    seed: int
    mark: str
    broken: str | None
    text: str


def run_and_report(nodes: int | None, seed: int) -> Report:
    """Run a seed in a process of its own, without a log."""
    logging.disable(logging.CRITICAL)
    return report(run_seed(seed, profile_for(seed, nodes)), nodes=nodes)


def report(played: RunResult, *, nodes: int | None = None) -> Report:
    """Report a seed; at length only where an invariant broke."""
    if played.broken is None:
        return Report(played.seed, played.mark, None, "")
    return Report(
        played.seed,
        played.mark,
        played.broken.invariant.name,
        f"{played.trace.tail(TAIL_LINES)}\n\nseed {played.seed}: {played.broken}\n"
        f"again: {replay(played.seed, nodes)}\n",
    )


def replay(seed: int, nodes: int | None = None) -> str:
    """Write the command that plays a seed again."""
    return f"make simulate SEEDS={seed}" + (f" NODES={nodes}" if nodes is not None else "") + " [TRACE=1]"


def seeds_of(text: str) -> range:
    """Read one seed, `12345`, or many, `0-9999`; raises `ValueError`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
