"""`gpu-agent probe --watch`: the machine by the agent's own probe loop, until interrupted.

The driver is read as the agent reads it: one that hangs costs nothing but its figures, and the page says how
old they are.
"""

import asyncio
import time
from collections.abc import Iterator

from gpu_agent.cli.agent.probe_page import fitted_page, machine_changes, probe_page
from gpu_agent.cli.agent.reading import ProbeRequest
from gpu_agent.cli.agent.settings import load_settings
from gpu_agent.cli.command import Arguments
from gpu_agent.cli.output.text import Line, Piece, glyphs, line, terminal_columns
from gpu_agent.cli.output.units import clock, duration_in_words
from gpu_agent.cli.output.watch import Page, Show, Update, watch
from gpu_agent.node.gpu_readings import open_collectors, open_gpus
from gpu_agent.node.model_watch import open_sources
from gpu_agent.node.prober import Pace, Prober
from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.snapshot import to_document
from gpu_agent.records import dataclass, replace
from gpu_agent.runtime.logs import configure
from gpu_agent.runtime.signals import RELOADING, STOPPING, signals_to_loop
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Inventory, Outcome

LATE_SECONDS = 4.5
"""A reading of the GPUs older than this is late: they are read every two seconds."""
INTERVAL_SECONDS = 2.0
WITHOUT_DRIVER_SECONDS = 10.0
TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest inventory, as it stands now."""

    inventory: Inventory
    at: float
    """When it was read, in wall seconds."""
    broken_since: float | None = None
    """When the driver was first seen not to work, in wall seconds; None while it works."""
    age_seconds: float | None = None
    """Age of the last good reading of the GPUs."""

    @property
    def is_late(self) -> bool:
        """Whether the last good reading of the GPUs is older than it should be."""
        return self.age_seconds is not None and self.age_seconds > LATE_SECONDS


def watch_probe(arguments: Arguments) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    settings = load_settings(arguments)
    configure("error")  # the page shows what the loop would log
    return watch(PAGE, lambda show: asyncio.run(_follow(settings, show)), as_json=arguments.json)


async def _follow(settings: AgentSettings, show: Show[Reading]) -> None:
    request = ProbeRequest(simulate=settings.simulate, state_dir=settings.state_dir)
    gpus = open_gpus(
        simulate=settings.simulate,
        seed=request.seed,
        deadline_seconds=settings.deadline_seconds,
    )
    newest: Reading | None = None
    async with gpus as source, Tasks() as tasks:

        async def listener(inventory: Inventory) -> None:
            nonlocal newest
            newest = next_reading(newest, inventory, at=time.time())
            show_now()

        def show_now() -> bool:
            return show(update_of(newest, prober.probe_age_seconds))

        prober = Prober(
            source,
            open_sources(settings),
            pace=Pace(
                interval_seconds=INTERVAL_SECONDS,
                deadline_seconds=settings.deadline_seconds,
                stale_after_seconds=settings.nvml_stale_after_seconds,
                retry_driver_seconds=WITHOUT_DRIVER_SECONDS,
            ),
            simulated=settings.simulate is not None,
            listener=listener,
            collectors=open_collectors(settings),
        )
        with signals_to_loop(STOPPING + RELOADING, lambda _: tasks.end()):
            probing = tasks.start("prober", prober.run(tasks))
            while show_now() and not probing.done():
                await asyncio.wait({probing}, timeout=TICK_SECONDS)
            tasks.end()


def next_reading(before: Reading | None, inventory: Inventory, *, at: float) -> Reading:
    """Return a reading that knows since when the driver has been broken."""
    if inventory.gpu.outcome is not Outcome.DRIVER_BROKEN:
        return Reading(inventory, at)
    since = None if before is None else before.broken_since
    return Reading(inventory, at, broken_since=at if since is None else since)


def update_of(reading: Reading | None, age_seconds: float | None) -> Update[Reading]:
    """Return what a watch shows now; None before the first reading."""
    if reading is None:
        return Update(None, Piece("reading this machine …"))
    now, aged = time.time(), replace(reading, age_seconds=age_seconds)
    if aged.is_late:
        return Update(aged, _lateness(aged))
    if reading.broken_since is not None:
        words = f"the driver does not work since {clock(reading.broken_since, now)} or longer"
        return Update(aged, Piece(words, "bold red"))
    return Update(aged, Piece(clock(reading.at, now), "dim"))


def _whole(reading: Reading) -> list[Line]:
    return probe_page(reading.inventory, terminal_columns(), glyphs(), now=time.time())


def _fitted(reading: Reading, size: tuple[int, int]) -> tuple[list[Line], list[str]]:
    return fitted_page(reading.inventory, size, glyphs(), now=time.time())


def _changes(before: Reading, after: Reading) -> Iterator[Line]:
    if before.inventory is not after.inventory:
        yield from machine_changes(before.inventory, after.inventory)
    if before.is_late is not after.is_late:
        yield line(_lateness(after) if after.is_late else "the driver answers again")


def _lateness(reading: Reading) -> Piece:
    now, age = time.time(), reading.age_seconds or 0.0
    since = f"the GPUs' figures are of {clock(now - age, now)}"
    return Piece(f"the driver has not answered for {duration_in_words(age)}: {since}", "bold red")


def _json(reading: Reading) -> dict[str, object]:
    age = None if reading.age_seconds is None else round(reading.age_seconds, 3)
    return {**to_document(reading.inventory), "at": round(reading.at, 3), "probe_age_seconds": age}


PAGE = Page(
    whole=_whole,
    fitted=_fitted,
    changes=_changes,
    json=_json,
    json_is_due=lambda before, after: before.inventory is not after.inventory,
)
