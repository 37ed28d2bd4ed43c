"""Liveness of the agent: it takes events, the session meets its deadlines, the probe loop turns. Reported to systemd.

A registry that is away is no stall: while the session backs off it meets its deadlines too. A driver or a
disk that hangs is none either, since the probe goes on without it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.sdnotify import SystemdNotifier, notify_liveness
from gpu_agent.session.types import SessionSnapshot, State

# Whether the agent gets on: its loop takes events, its session keeps deadlines, its probe comes round.
#
# It judges signs and a moment, and nothing else. A registry that is away is no sign of illness: while the
# session backs off it keeps its deadlines as well as while it beats. A driver or a disk that hangs is none
# either, since the probe goes on without them.


MOST_HELD_UP_SECONDS = 15.0
"""So long may one event take, or a deadline be late: a slow disk costs 1.5 s for each thing to be kept."""
PROBE_SLACK_SECONDS = 30.0
"""So much longer than it has any reason to may the probe need to come round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What an agent shows of itself. Instants are monotonic seconds."""

    busy_since: float | None
    """When it began with the event that it is at; None while it waits for one."""
    deadline: float | None
    """When its session wants to be woken; None when only an event can change anything."""
    probed_at: float
    """When its probe last began to look."""
    probe_patience_seconds: float
    """How long after that it begins again, however much hangs."""


def find_stall(signs: Progress, now: float) -> str | None:
    """Say what stands still, as a sentence; None when the agent gets on."""
    if signs.busy_since is not None and now - signs.busy_since > MOST_HELD_UP_SECONDS:
        return f"one event has been under way for {now - signs.busy_since:.0f} s"
    if signs.busy_since is None and signs.deadline is not None:
        late_seconds = now - signs.deadline
        if late_seconds > MOST_HELD_UP_SECONDS:
            return f"the session's deadline passed {late_seconds:.0f} s ago"
    probe_seconds = now - signs.probed_at
    if probe_seconds > signs.probe_patience_seconds + PROBE_SLACK_SECONDS:
        return f"the probe has not come round for {probe_seconds:.0f} s"
    return None


# The agent as its service manager sees it: how it stands in a line, and a sign of life while it gets on.
#
# It lives while `pulse` finds nothing that ails it; what does is logged. Feeds no watchdog itself.


EXTENSION_SECONDS = 30.0
"""For so long an agent that drains asks to be waited for, three times within it."""

_STATE_LINES = {
    State.IDLE: "starting",
    State.CONNECTING: "connecting",
    State.AWAITING_ACK: "registering",
    State.DRAINED: "drained, as its owner asked",
    State.STOPPED: "stopped",
}
_NOT_CONNECTED = {
    State.WAITING_GPU: "waiting for a GPU",
    State.BACKING_OFF: "not connected, will try again",
    State.YIELDED: "left to another session until it is restarted",
}

_LOG = Logger("node")


async def report_liveness(
    systemd: SystemdNotifier, view: Callable[[], SessionSnapshot], signs: Callable[[], Progress]
) -> None:
    """Look and tell until cancelled."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("agent_recovered")
        else:
            _LOG.error("agent_stalled", problem=problem, restarted=systemd.watchdog_seconds is not None)

    await notify_liveness(
        systemd,
        standing=lambda: status_line(view()),
        ailment=lambda: find_stall(signs(), asyncio.get_running_loop().time()),
        changed=changed,
    )


async def extend_stop(systemd: SystemdNotifier, signs: Callable[[], Progress]) -> None:
    """Ask for time to finish its jobs, a little at a time: an agent that stands still gets no more."""
    while find_stall(signs(), asyncio.get_running_loop().time()) is None:
        systemd.extend(EXTENSION_SECONDS)
        await asyncio.sleep(EXTENSION_SECONDS / 3)


def status_line(view: SessionSnapshot) -> str:
    """Say in a line where a session stands, in the registry's words where it has given any."""
    if (plain := _STATE_LINES.get(view.state)) is not None:
        return plain
    if (hindered := _NOT_CONNECTED.get(view.state)) is not None:
        return hindered if view.last_refusal is None else f"{hindered}: {view.last_refusal}"
    if view.registry_status is None:
        return f"registered as {view.node_id}"
    return f"{view.registry_status.status} as {view.node_id}: {view.registry_status.reason}"
