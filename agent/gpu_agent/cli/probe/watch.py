"""Watches this machine by the agent's own probe loop, until it is interrupted or nobody reads any more.

The driver is asked as the agent asks it: a hanging one costs nothing but its figures.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
from typing import Protocol

from rich.console import Console

from gpu_agent.cli.bars import letters
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.probe.page import probe_page
from gpu_agent.cli.probe.settings import settings_of
from gpu_agent.cli.probe.watch_view import JsonView, LinesView, ScreenView
from gpu_agent.cli.terminal import columns, show
from gpu_agent.node.collecting import collectors_of
from gpu_agent.node.gpus import opened_gpus
from gpu_agent.node.prober import Pace, Prober
from gpu_agent.node.settings import AgentSettings
from gpu_agent.node.sources import opened_sources
from gpu_agent.runtime.logs import configure
from gpu_agent.runtime.signals import RELOADING, STOPPING, delivered
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Inventory

INTERVAL_SECONDS = 2.0
WITHOUT_DRIVER_SECONDS = 10.0
TICK_SECONDS = 1.0


class View(Protocol):
    """Where the machine is shown."""

    def take(self, inventory: Inventory, age_seconds: float | None) -> None:
        """Show a new look at it; the age is the GPUs' last good reading's."""

    def tick(self, age_seconds: float | None) -> None:
        """Show how old the last look is by now."""

    def over(self) -> bool:
        """Say whether nobody looks any more."""


def main(arguments: argparse.Namespace) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    settings = settings_of(arguments)
    configure("error")  # what the loop logs is shown here already
    if arguments.json or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        asyncio.run(_watched(settings, JsonView() if arguments.json else LinesView()))
        return ExitCode.OK
    with LiveLines(Console(), whole_screen=True) as live:
        view = ScreenView(live)
        asyncio.run(_watched(settings, view))
    if view.shown is not None:
        show(probe_page(view.shown, columns(), letters(), now=time.time()))
    return ExitCode.OK


async def _watched(settings: AgentSettings, view: View) -> None:
    apart = "" if settings.state_dir is None else f"\n{settings.state_dir}"
    reading = opened_gpus(
        simulate=settings.simulate,
        seed=f"{platform.node()}{apart}",
        deadline_seconds=settings.deadline_seconds,
    )
    async with reading as read_gpus, Tasks() as tasks:

        async def listener(inventory: Inventory) -> None:
            view.take(inventory, prober.probe_age_seconds)

        prober = Prober(
            read_gpus,
            opened_sources(settings),
            pace=Pace(
                interval_seconds=INTERVAL_SECONDS,
                deadline_seconds=settings.deadline_seconds,
                stale_after_seconds=settings.nvml_stale_after_seconds,
                without_driver_seconds=WITHOUT_DRIVER_SECONDS,
            ),
            simulated=settings.simulate is not None,
            listener=listener,
            collecting=collectors_of(settings),
        )
        with delivered(STOPPING + RELOADING, lambda _: tasks.end()):
            tasks.start("prober", prober.run(tasks))
            await asyncio.wait({tasks.start("clock", _until_over(view, prober))})
            tasks.end()


async def _until_over(view: View, prober: Prober) -> None:
    while not view.over():
        view.tick(prober.probe_age_seconds)
        await asyncio.sleep(TICK_SECONDS)
