"""The registry as its service manager sees it: what it holds in a line, and a sign of life while it gets on.

It lives while `pulse` finds nothing that ails it; what does is logged. Feeds no watchdog itself.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.supervision import supervise
from gpu_agent.server.pulse import ailment
from gpu_agent.server.vitals import Vitals

_LOG = EventLog("registry")


async def attend(systemd: Systemd, vitals: Vitals, *, where: str) -> None:
    """Look and tell until cancelled; `where` says on which addresses it listens."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("registry_gets_on_again")
        else:
            _LOG.error(
                "registry_stands_still", problem=problem, restarted=systemd.watchdog_seconds is not None
            )

    now: Callable[[], float] = asyncio.get_running_loop().time
    await supervise(
        systemd,
        standing=lambda: standing_of(vitals, where),
        ailment=lambda: ailment(vitals.signs, now()),
        changed=changed,
    )


def standing_of(vitals: Vitals, where: str) -> str:
    """Say in a line how a registry stands: what keeps it from its work, else what it holds."""
    failing = [check.detail for check in vitals.readiness() if not check.ok]
    if failing:
        return failing[0]
    size = vitals.size
    return f"{_counted(size.nodes, 'node')}, {_counted(size.connections, 'connection')}; {where}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
