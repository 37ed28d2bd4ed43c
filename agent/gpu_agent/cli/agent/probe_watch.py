"""`gpu-agent probe --watch`: the machine by the agent's own probe loop, until interrupted.

The driver is read as the agent reads it: one that hangs costs nothing but its figures, and the page says how
old they are.
"""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterable
from typing import Protocol

from gpu_agent.cli.agent.probe_page import fitted_page, machine_changes, probe_page
from gpu_agent.cli.agent.reading import ProbeRequest
from gpu_agent.cli.agent.settings import load_settings
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.output.blocks import foot_lines
from gpu_agent.cli.output.screen import LiveLines, can_redraw, print_changes
from gpu_agent.cli.output.streams import reader_left
from gpu_agent.cli.output.text import Line, Piece, glyphs, line, print_lines, terminal_columns
from gpu_agent.cli.output.units import clock, duration_in_words
from gpu_agent.node.gpu_readings import open_collectors, open_gpus
from gpu_agent.node.model_watch import open_sources
from gpu_agent.node.prober import Pace, Prober
from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.snapshot import to_document
from gpu_agent.runtime.logs import configure
from gpu_agent.runtime.signals import RELOADING, STOPPING, signals_to_loop
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Inventory, Outcome

LATE_SECONDS = 4.5
"""A reading of the GPUs older than this is late: they are read every two seconds."""
INTERVAL_SECONDS = 2.0
WITHOUT_DRIVER_SECONDS = 10.0
TICK_SECONDS = 1.0


class View(Protocol):
    """Where the machine is shown."""

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Show a new reading; the age is that of the last good one of the GPUs."""

    def tick(self, age_seconds: float | None) -> None:
        """Show how old the last reading is by now."""

    def over(self) -> bool:
        """Say whether its reader has left."""


def watch_probe(arguments: Arguments) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    settings = load_settings(arguments)
    configure("error")  # the page shows what the loop would log
    if arguments.json or not can_redraw():
        asyncio.run(_watch(settings, JsonView() if arguments.json else LinesView()))
        return ExitCode.OK
    with LiveLines(whole_screen=True) as live:
        view = ScreenView(live)
        asyncio.run(_watch(settings, view))
    if view.shown is not None:
        print_lines(probe_page(view.shown, terminal_columns(), glyphs(), now=time.time()))
    return ExitCode.OK


async def _watch(settings: AgentSettings, view: View) -> None:
    request = ProbeRequest(simulate=settings.simulate, state_dir=settings.state_dir)
    reading = open_gpus(
        simulate=settings.simulate,
        seed=request.seed,
        deadline_seconds=settings.deadline_seconds,
    )
    async with reading as read_gpus, Tasks() as tasks:

        async def listener(inventory: Inventory) -> None:
            view.take(inventory, prober.probe_age_seconds)

        prober = Prober(
            read_gpus,
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
            tasks.start("prober", prober.run(tasks))
            await asyncio.wait({tasks.start("clock", _until_over(view, prober))})
            tasks.end()


async def _until_over(view: View, prober: Prober) -> None:
    while not view.over():
        view.tick(prober.probe_age_seconds)
        await asyncio.sleep(TICK_SECONDS)


class LinesView:
    """First the page, then a line for each change."""

    def __init__(self) -> None:
        self._shown: Inventory | None = None
        self._late = False

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Show what changed."""
        now = time.time()
        if self._shown is None:
            print_lines(probe_page(inventory, terminal_columns(), glyphs(), now=now))
        else:
            _print_now(machine_changes(self._shown, inventory))
        self._shown = inventory
        self.tick(age_seconds)

    def tick(self, age_seconds: float | None) -> None:
        """Say once that the driver is late, and once that it answers again."""
        late = is_late(age_seconds)
        if late is not self._late:
            self._late, now = late, time.time()
            _print_now([_lateness(age_seconds, now) if late else line("the driver answers again")])

    def over(self) -> bool:
        """A pipe's reader may leave."""
        return reader_left()


class JsonView:
    """The whole document on a line, for each reading."""

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Print it with its time, and the age of the GPUs' figures."""
        age = None if age_seconds is None else round(age_seconds, 3)
        document = {**to_document(inventory), "at": round(time.time(), 3), "probe_age_seconds": age}
        print(json.dumps(document, separators=(",", ":")), flush=True)

    def tick(self, age_seconds: float | None) -> None:
        """Print nothing between readings."""

    def over(self) -> bool:
        """A pipe's reader may leave."""
        return reader_left()


class ScreenView:
    """The page on a whole terminal, redrawn in place."""

    def __init__(self, live: LiveLines) -> None:
        self._live = live
        self.shown: Inventory | None = None
        self._taken_at = 0.0
        self._broken_since: float | None = None

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Draw it."""
        self.shown, self._taken_at = inventory, time.time()
        broken = inventory.gpu.outcome is Outcome.DRIVER_BROKEN
        self._broken_since = (self._broken_since or self._taken_at) if broken else None
        self.tick(age_seconds)

    def tick(self, age_seconds: float | None) -> None:
        """Draw the same again: ages grow, and the terminal may have another size."""
        now, size = time.time(), shutil.get_terminal_size()
        words = self._foot(age_seconds, now)
        room = size.lines - len(foot_lines(words, [], size.columns))
        page, left_out = [line("reading this machine …")], list[str]()
        if self.shown is not None:
            page, left_out = fitted_page(self.shown, (size.columns, room), glyphs(), now=now)
        self._live.draw([*page, *foot_lines(words, left_out, size.columns)])

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False

    def _foot(self, age_seconds: float | None, now: float) -> Line:
        if is_late(age_seconds):
            return _lateness(age_seconds, now)
        if self._broken_since is not None:
            words = f"the driver does not work since {clock(self._broken_since, now)} or longer"
            return line(Piece(words, "bold red"))
        return line(Piece(clock(self._taken_at or now, now), "dim"))


def _print_now(changes: Iterable[Line]) -> None:
    print_changes(changes)
    sys.stdout.flush()  # a watch is read at once


def is_late(age_seconds: float | None) -> bool:
    """Say whether the last good reading of the GPUs is older than it should be."""
    return age_seconds is not None and age_seconds > LATE_SECONDS


def _lateness(age_seconds: float | None, now: float) -> Line:
    age = age_seconds or 0.0
    since = f"the GPUs' figures are of {clock(now - age, now)}"
    words = f"the driver has not answered for {duration_in_words(age)}: {since}"
    return line(Piece(words, "bold red"))
