"""Whether the registry gets on: its fleet's clock goes, and the thread that keeps its state comes back.

It judges signs and a moment, and nothing else. A disk that is full or fails is no sign of illness, and one
that hangs is none for minutes: all that the registry knows stays told meanwhile, and what cannot be kept is
refused. Past that only a new start can tell a disk that hangs from a thread that does.
"""

from dataclasses import dataclass

MOST_LATE_SECONDS = 15.0
"""So late may the fleet's clock be: a loop that is merely busy comes to it within one."""
MOST_WRITING_SECONDS = 300.0
"""So long may one commit take: a disk that moves to another machine comes back before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What a registry shows of itself. Instants are monotonic seconds."""

    wakes_at: float | None
    """When its fleet's clock is to be looked after; None while it keeps no time, as when it stops."""
    writing_since: float | None
    """When the store began with what it is at; None while it waits for work."""


def ailment(signs: Signs, now: float) -> str | None:
    """Say what stands still, as a sentence; None when the registry gets on."""
    if signs.wakes_at is not None and now - signs.wakes_at > MOST_LATE_SECONDS:
        return f"the fleet's clock is {now - signs.wakes_at:.0f} s late"
    if signs.writing_since is not None and now - signs.writing_since > MOST_WRITING_SECONDS:
        return f"the store has been at one commit for {now - signs.writing_since:.0f} s"
    return None
