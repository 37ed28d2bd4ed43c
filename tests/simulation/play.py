"""One world, played from its seed to its end. The same seed always plays alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.simulation.agents import Agent
from tests.simulation.box import Box
from tests.simulation.broken import BrokenError, Invariant
from tests.simulation.chaos import Chaos
from tests.simulation.climate import Climate, climate_of
from tests.simulation.desk import Desk
from tests.simulation.disk import Disk, Medium
from tests.simulation.ending import Ending
from tests.simulation.memory_medium import MemoryMedium
from tests.simulation.network import Network
from tests.simulation.operators import Operators
from tests.simulation.played_loop import played_threads
from tests.simulation.registry_side import RegistrySide
from tests.simulation.scene import Scene
from tests.simulation.scheduler import Scheduler
from tests.simulation.sqlite_medium import SqliteMedium
from tests.simulation.state_dir import StateDir
from tests.simulation.token_office import TokenOffice
from tests.simulation.trace import Trace
from tests.simulation.watches.arrows import ArrowsWatch
from tests.simulation.watches.claims import ClaimsWatch
from tests.simulation.watches.credentials import CredentialsWatch
from tests.simulation.watches.disk import DiskWatch
from tests.simulation.watches.events import EventsWatch
from tests.simulation.watches.flaps import FlapsWatch
from tests.simulation.watches.movers import MoversWatch
from tests.simulation.watches.owners import OwnersWatch
from tests.simulation.watches.places import PlacesWatch
from tests.simulation.watches.reasons import ReasonsWatch
from tests.simulation.watches.sessions import SessionsWatch
from tests.simulation.watches.silence import SilenceWatch
from tests.simulation.watches.telling import TellingWatch
from tests.simulation.watches.wishes import WishesWatch
from tests.simulation.watching import Watchers
from tests.simulation.world import World

_GLANCE_SECONDS = 5.0
_ARRIVE_WITHIN_SECONDS = 10.0
_WAKES_WITHIN_SECONDS = 1.0
"""A registry that stood still may take so long to hear what waits before it judges."""


@dataclass(frozen=True, slots=True)
class Played:
    """How a seed went."""

    seed: int
    mark: str
    """The trace in one number."""
    broken: BrokenError | None
    trace: Trace


def play(seed: int, climate: Climate | None = None, *, whole_trace: bool = False) -> Played:
    """Play a seed's world; a broken invariant ends it."""
    trace = Trace(whole=whole_trace)
    broken: BrokenError | None = None
    climate = climate or climate_of(seed)
    try:
        with played_threads(), _medium(climate) as medium:
            _Stage(seed, climate, trace=trace, medium=medium).run()
    except BrokenError as error:
        broken = error
    except Exception as error:  # noqa: BLE001 - whatever a machine raises is what is looked for
        broken = BrokenError(Invariant.NO_CRASH, f"{type(error).__name__}: {error}")
        broken.__cause__ = error
    return Played(seed, trace.mark, broken, trace)


@contextmanager
def _medium(climate: Climate) -> Iterator[Medium]:
    """Lend a disk: a true file where the climate wants one."""
    if not climate.sqlite:
        yield MemoryMedium()
        return
    with TemporaryDirectory() as folder:
        medium = SqliteMedium(Path(folder), Random(climate.nodes))
        try:
            yield medium
        finally:
            medium.close()


class _Stage:
    """Sets a world up and runs it."""

    def __init__(self, seed: int, climate: Climate, *, trace: Trace, medium: Medium) -> None:
        world = self._world = World(seed, trace=trace)
        network = Network(world, most_seconds_on_the_way=climate.most_seconds_on_the_way)
        disk = Disk(world, medium, quick_seconds=climate.commit_seconds)
        registry = RegistrySide(world, climate, network=network, disk=disk)
        network.serve(registry)
        scene = self._scene = Scene(world, climate, network, registry)
        wishes, sessions, credentials = WishesWatch(scene), SessionsWatch(scene), CredentialsWatch(scene)
        self._watch = Watchers(
            (
                sessions,
                ArrowsWatch(scene),
                wishes,
                OwnersWatch(scene),
                credentials,
                ClaimsWatch(scene),
                PlacesWatch(scene, wishes),
                TellingWatch(scene),
                EventsWatch(),
                DiskWatch(),
                FlapsWatch(scene),
                SilenceWatch(scene),
                ReasonsWatch(scene),
                MoversWatch(),
            )
        )
        registry.watch = self._watch
        scene.agents += [self._agent(number) for number in range(climate.nodes)]
        desk = Desk(world, registry)
        self._scheduler = Scheduler(scene, desk)
        self._office = TokenOffice(scene, desk)
        self._chaos = Chaos(scene, Operators(scene, desk), scheduler=self._scheduler, office=self._office)
        self._ending = Ending(scene, sessions, credentials=credentials, office=self._office)

    def run(self) -> None:
        """Play: arrival, chaos, peace, and one restart more."""
        world, scene = self._world, self._scene
        scene.registry.start()
        for agent in scene.agents:
            world.after(world.dice.uniform(0.0, _ARRIVE_WITHIN_SECONDS), agent.start)
        self._office.open()
        self._scheduler.start()
        self._chaos.begin()
        self._every(_GLANCE_SECONDS, self._glance)
        world.run_until(scene.climate.chaos_seconds)
        self._scheduler.stop()
        self._chaos.end()
        self._ending.settle()
        self._glance()
        self._ending.restart()

    def _agent(self, number: int) -> Agent:
        climate, world = self._scene.climate, self._world
        name = f"agent-{number + 1}"
        box = Box(name, world.dice, announces_jobs=world.chance(2 / 3))
        agent = Agent(box, StateDir(), world=world, network=self._scene.network, wire=climate.wire)
        agent.watch = self._watch
        return agent

    def _glance(self) -> None:
        registry = self._scene.registry
        if registry.running and registry.busy_until + _WAKES_WITHIN_SECONDS <= self._world.now:
            self._watch.glance()

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        do()
        self._world.after(seconds, lambda: self._every(seconds, do))
