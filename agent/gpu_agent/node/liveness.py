"""Liveness of the agent, reported to systemd: it handles events, meets deadlines and probes.

A registry that is away is no stall: while the session backs off it meets its deadlines too. A driver or a
disk that hangs is none either, since the probe goes on without it.
"""

import asyncio
from collections.abc import Callable

from gpu_agent.node.snapshot import Snapshot
from gpu_agent.records import dataclass
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.sdnotify import SystemdNotifier, notify_liveness
from gpu_agent.session.types import SessionSnapshot, State

MAX_EVENT_SECONDS = 15.0
"""How long the agent may handle one event, or a deadline be late: a slow disk costs 1.5 s for each write."""
PROBE_SLACK_SECONDS = 30.0
"""How much longer than its longest round the prober may take."""
EXTENSION_SECONDS = 30.0
"""How long a draining agent asks systemd to wait; it repeats that three times as often."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Signs that the agent works. Instants are monotonic seconds."""

    busy_since: float | None
    """When it began to handle its current event; None while it waits for one."""
    deadline: float | None
    """When its session wants to be woken; None when only an event can change anything."""
    probed_at: float
    """When the prober's last round began."""
    max_probe_seconds: float
    """The longest time until the next round, whatever hangs."""


def find_stall(progress: Progress, now: float) -> str | None:
    """Say in a sentence what has stalled; None when nothing has."""
    if progress.busy_since is not None and now - progress.busy_since > MAX_EVENT_SECONDS:
        return f"one event has been under way for {now - progress.busy_since:.0f} s"
    if progress.busy_since is None and progress.deadline is not None:
        late_seconds = now - progress.deadline
        if late_seconds > MAX_EVENT_SECONDS:
            return f"the session's deadline passed {late_seconds:.0f} s ago"
    probe_seconds = now - progress.probed_at
    if probe_seconds > progress.max_probe_seconds + PROBE_SLACK_SECONDS:
        return f"no probe has begun for {probe_seconds:.0f} s"
    return None


async def report_liveness(
    systemd: SystemdNotifier, snapshot: Callable[[], Snapshot], progress: Callable[[], Progress]
) -> None:
    """Check and report until cancelled; the log says when the agent stalls and when it recovers."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("agent_recovered")
        else:
            _LOG.error("agent_stalled", problem=problem, restarted=systemd.watchdog_seconds is not None)

    await notify_liveness(
        systemd,
        status_line=lambda: unit_line(snapshot()),
        find_problem=lambda: find_stall(progress(), asyncio.get_running_loop().time()),
        on_change=changed,
    )


async def extend_stop(systemd: SystemdNotifier, progress: Callable[[], Progress]) -> None:
    """Ask systemd for time to finish the jobs, a little at a time; a stalled agent gets no more."""
    while find_stall(progress(), asyncio.get_running_loop().time()) is None:
        systemd.extend(EXTENSION_SECONDS)
        await asyncio.sleep(EXTENSION_SECONDS / 3)


def unit_line(snapshot: Snapshot) -> str:
    """Say in a line how the agent is: first what an operator has to fix on this machine, then its session."""
    line = status_line(snapshot.session)
    problems = (snapshot.state_problem, snapshot.settings_problem)
    return "; ".join([*(one for one in problems if one is not None and one not in line), line])


def status_line(session: SessionSnapshot) -> str:
    """Say in a line what the session does, with the registry's reason where it has sent one."""
    if (line := _STATE_LINES.get(session.state)) is not None:
        return line
    if session.state is State.BACKING_OFF and session.last_refusal is None:
        return _STATE_LINES[State.CONNECTING]  # in a moment: no attempt has failed yet
    if (line := _NOT_CONNECTED.get(session.state)) is not None:
        return line if session.last_refusal is None else f"{line}: {session.last_refusal}"
    if session.registry_status is None:
        return f"registered as {session.node_id}"
    return f"{session.registry_status.status} as {session.node_id}: {session.registry_status.reason}"
