"""The agent as its service manager sees it: how it stands in a line, and a sign of life while it gets on.

The watchdog is fed from the event loop, so one that stands feeds nothing, and only while `pulse` finds
nothing that ails the agent; what does is logged, with a service manager or without. It restarts nothing:
that is the service manager's part.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.node.pulse import Signs, ailment
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.session.story import State
from gpu_agent.session.view import SessionView

LOOK_SECONDS = 5.0
"""How often it is looked at, and oftener where the watchdog is in a hurry."""
_LOOKS_WITHIN_PATIENCE = 4
"""So many signs of life are due until the watchdog loses patience: one that is late costs nothing."""

_PLAIN = {
    State.IDLE: "starting",
    State.CONNECTING: "connecting",
    State.AWAITING_ACK: "registering",
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
    patience = systemd.watchdog_seconds
    every_seconds = LOOK_SECONDS if patience is None else min(LOOK_SECONDS, patience / _LOOKS_WITHIN_PATIENCE)
    ailing = False
    while True:
        systemd.status(standing_of(view()))
        problem = ailment(signs(), asyncio.get_running_loop().time())
        if problem is None:
            systemd.alive()
        if problem is not None and not ailing:
            _LOG.error("agent_stands_still", problem=problem, restarted=patience is not None)
        elif problem is None and ailing:
            _LOG.info("agent_gets_on_again")
        ailing = problem is not None
        await asyncio.sleep(every_seconds)


def standing_of(view: SessionView) -> str:
    """Say in a line where a session stands, in the registry's words where it has given any."""
    if (plain := _PLAIN.get(view.state)) is not None:
        return plain
    if (hindered := _HINDERED.get(view.state)) is not None:
        return hindered if view.last_refusal is None else f"{hindered}: {view.last_refusal}"
    if view.verdict is None:
        return f"registered as {view.node_id}"
    return f"{view.verdict.status} as {view.node_id}: {view.verdict.reason}"
