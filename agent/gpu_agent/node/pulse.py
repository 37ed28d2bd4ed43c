"""Whether the agent gets on: its loop takes events, its session keeps deadlines, its probe comes round.

It judges signs and a moment, and nothing else. A registry that is away is no sign of illness: while the
session backs off it keeps its deadlines as well as while it beats. A driver or a disk that hangs is none
either, since the probe goes on without them.
"""

from dataclasses import dataclass

MOST_HELD_UP_SECONDS = 15.0
"""So long may one event take, or a deadline be late: a slow disk costs 1.5 s for each thing to be kept."""
PROBE_SLACK_SECONDS = 30.0
"""So much longer than it has any reason to may the probe need to come round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What an agent shows of itself. Instants are monotonic seconds."""

    busy_since: float | None
    """When it began with the event that it is at; None while it waits for one."""
    deadline: float | None
    """When its session wants to be woken; None when only an event can change anything."""
    probed_at: float
    """When its probe last began to look."""
    probe_patience_seconds: float
    """How long after that it begins again, however much hangs."""


def ailment(signs: Signs, now: float) -> str | None:
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
