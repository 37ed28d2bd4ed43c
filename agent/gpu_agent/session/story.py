"""What a session went through last, and the error that tells it.

The hierarchy: `SessionError` (ours; no peer can cause one)
├ `IllegalEventError`: the shell broke its promise
└ `NothingDeclaredError`: the machine broke its own (see `registration`).
"""

from collections import deque
from enum import StrEnum

_REMEMBERED = 32


class State(StrEnum):
    """Where a session stands."""

    IDLE = "idle"
    """Not started."""
    WAITING_GPU = "waiting_gpu"
    """Nothing connects until the probe declares a usable GPU."""
    BACKING_OFF = "backing_off"
    """Waiting to try again."""
    CONNECTING = "connecting"
    AWAITING_ACK = "awaiting_ack"
    """`node_register` is sent, its answer is not here."""
    REGISTERED = "registered"
    """Acknowledged and beating."""
    LEAVING = "leaving"
    """Asked to drain: still beating, waiting to be told `offline`."""
    YIELDED = "yielded"
    """A newer session holds the identity; this one does not fight."""
    DRAINED = "drained"
    """Emptied, as its owner asked; nothing connects until he resumes it."""
    STOPPED = "stopped"


UNHEARD = {
    State.IDLE: "it has not begun",
    State.WAITING_GPU: "it waits for a GPU",
    State.BACKING_OFF: "it waits to try again",
    State.CONNECTING: "it connects",
    State.AWAITING_ACK: "it waits for the registry's answer",
    State.YIELDED: "a newer session has its id",
    State.DRAINED: "it is drained, as its owner asked",
    State.STOPPED: "it ends",
}
"""What a session does while the registry does not hear it, in words for people."""


class SessionError(Exception):
    """Base of what a session machine raises."""


class IllegalEventError(SessionError):
    """An event that cannot happen in this state; nothing was changed."""

    def __init__(self, event: object, story: str) -> None:
        super().__init__(f"{type(event).__name__} cannot happen now. The story so far:\n{story}")


class Story:
    """The last transitions, oldest first."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_REMEMBERED)

    def record(self, now: float, move: tuple[State, State], cause: str) -> None:
        """Keep one transition, from and to."""
        self._lines.append(f"{now:.3f} {move[0]} → {move[1]}: {cause}")

    def __str__(self) -> str:
        return "\n".join(self._lines) or "nothing happened yet"
