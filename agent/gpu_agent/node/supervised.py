"""The agent as its service manager sees it: how it stands in a line, and a sign of life while it gets on.

It lives while `pulse` finds nothing that ails it; what does is logged. Feeds no watchdog itself.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.node.pulse import Signs, ailment
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.supervision import supervise
from gpu_agent.session.story import State
from gpu_agent.session.view import SessionView

EXTENSION_SECONDS = 30.0
"""For so long an agent that drains asks to be waited for, three times within it."""

_PLAIN = {
    State.IDLE: "starting",
    State.CONNECTING: "connecting",
    State.AWAITING_ACK: "registering",
    State.DRAINED: "drained, as its owner asked",
    State.STOPPED: "stopped",
}
_HINDERED = {
    State.WAITING_GPU: "waiting for a GPU",
    State.BACKING_OFF: "not connected, will try again",
    State.YIELDED: "left to another session until it is restarted",
}

_LOG = EventLog("node")


async def attend(systemd: Systemd, view: Callable[[], SessionView], signs: Callable[[], Signs]) -> None:
    """Look and tell until cancelled."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("agent_gets_on_again")
        else:
            _LOG.error("agent_stands_still", problem=problem, restarted=systemd.watchdog_seconds is not None)

    await supervise(
        systemd,
        standing=lambda: standing_of(view()),
        ailment=lambda: ailment(signs(), asyncio.get_running_loop().time()),
        changed=changed,
    )


async def stay(systemd: Systemd, signs: Callable[[], Signs]) -> None:
    """Ask for time to finish its jobs, a little at a time: an agent that stands still gets no more."""
    while ailment(signs(), asyncio.get_running_loop().time()) is None:
        systemd.extend(EXTENSION_SECONDS)
        await asyncio.sleep(EXTENSION_SECONDS / 3)


def standing_of(view: SessionView) -> str:
    """Say in a line where a session stands, in the registry's words where it has given any."""
    if (plain := _PLAIN.get(view.state)) is not None:
        return plain
    if (hindered := _HINDERED.get(view.state)) is not None:
        return hindered if view.last_refusal is None else f"{hindered}: {view.last_refusal}"
    if view.verdict is None:
        return f"registered as {view.node_id}"
    return f"{view.verdict.status} as {view.node_id}: {view.verdict.reason}"
