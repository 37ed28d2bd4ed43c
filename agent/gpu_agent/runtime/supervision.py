"""A program as its service manager sees it: how it stands in a line, and a sign of life while it gets on.

The watchdog is fed from the event loop, so one that stands feeds nothing, and only while nothing ails the
program. What does is told to whoever asked, with a service manager or without. It judges nothing, and
restarts nothing: that is the service manager's part.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.runtime.sdnotify import Systemd

LOOK_SECONDS = 5.0
"""How often it is looked at, and oftener where the watchdog is in a hurry."""
_LOOKS_WITHIN_PATIENCE = 4
"""So many signs of life are due until the watchdog loses patience: one that is late costs nothing."""
_SECOND_LOOK = 0.1
"""Of the time between two looks: so soon what seems to ail is looked at again before it is told."""


async def supervise(
    systemd: Systemd,
    *,
    standing: Callable[[], str],
    ailment: Callable[[], str | None],
    changed: Callable[[str | None], None],
) -> None:
    """Look and tell until cancelled. `changed` hears of an ailment that begins, and None at its end."""
    patience = systemd.watchdog_seconds
    every_seconds = LOOK_SECONDS if patience is None else min(LOOK_SECONDS, patience / _LOOKS_WITHIN_PATIENCE)
    ailing = False
    while True:
        systemd.status(standing())
        problem = ailment()
        if problem is not None and not ailing:  # after a stop all are late at once: let the others be woken
            await asyncio.sleep(every_seconds * _SECOND_LOOK)
            problem = ailment()
        if problem is None:
            systemd.alive()
        if ailing is not (problem is not None):
            ailing = not ailing
            changed(problem)
        await asyncio.sleep(every_seconds)
