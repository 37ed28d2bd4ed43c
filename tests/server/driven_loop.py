"""A fleet's loop with a machine that is scripted, hands that write down, and a disk that can fail."""

import threading
from collections.abc import Callable, Sequence

from gpu_agent.registry.actions import Action, Answer, Change, DocumentKind, LogEvent, Save
from gpu_agent.registry.events import Event
from gpu_agent.server.clock import Clock
from gpu_agent.server.effects import Clerk, Doing, Open, Publish, Ready
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Batch, RegistryEvent, Store, StoreError
from gpu_agent.store.memory import MemoryStore


class Scripted:
    """A machine whose answers are written down beforehand."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.answers: dict[Event, Sequence[Action]] = {}
        self.heard: list[Event] = []
        self.woken: list[float] = []
        self.on_waking: Sequence[Action] = ()

    def handle(self, event: Event, now: float) -> Sequence[Action]:  # noqa: ARG002 - the machine's grammar
        self.heard.append(event)
        return self.answers.get(event, ())

    def wake(self, now: float) -> Sequence[Action]:
        self.woken.append(now)
        self.deadline = None
        return self.on_waking


class Hands:
    """Makes ready as the carrier does, and carries out by writing down."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.published: list[RegistryEvent] = []
        self.lags: list[float] = []
        self.work: Callable[[str], None] = lambda _: None
        self._clerk = Clerk(RegistryEventLog(), Clock())

    def make_ready(self, actions: Sequence[Action]) -> Ready:
        return self._clerk.make_ready(actions)

    def carry_out(self, doing: Doing) -> None:
        if isinstance(doing, Open):
            return
        if isinstance(doing, Publish):
            self.published.append(doing.event)
        name = named(doing)
        self.work(name)
        self.done.append(name)


class Disk(MemoryStore):
    """Keeps nothing under the keys that it is told to refuse, and waits where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.full = False
        self.turning = threading.Event()
        self.turning.set()

    def save(self, batches: Sequence[Batch]) -> None:
        self.turning.wait(10)
        if self.full or self.refused & {change.key for batch in batches for change in batch.changes}:
            raise StoreError("full")
        super().save(batches)


def named(doing: Doing) -> str:
    match doing:
        case Publish(event):
            return event.event
        case LogEvent(name):
            return name
        case Answer(ref):
            return f"answer {ref}"
        case _:
            return type(doing).__name__


def driven(
    machine: Scripted,
    hands: Hands,
    *,
    scan: float = 30.0,
    store: Store | None = None,
    clock: Clock | None = None,
) -> FleetLoop:
    loop = FleetLoop(
        machine,
        hands,
        Writer(store or Disk()),
        clock=clock or Clock(),
        scan_interval_seconds=scan,
        lagged=hands.lags.append,
    )
    loop.start()
    return loop


def save(number: int, key: str = "node-1") -> Save:
    return Save(number, (Change(DocumentKind.NODE, key, {"number": number}),))
