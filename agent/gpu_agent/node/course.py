"""How the session has gone so far, in instants: since when it stands as it does, when it last beat.

It is told, and reads no clock. Instants are monotonic seconds.
"""

from gpu_agent.session.story import State
from gpu_agent.session.view import SessionView
from gpu_agent.wire.messages import NodeStatusMessage

CONNECTED = frozenset({State.REGISTERED, State.LEAVING})
"""States in which the registry hears this node."""


class Course:
    """What a view alone does not tell: when."""

    def __init__(self) -> None:
        self.state_since: float | None = None
        """When the session came into the state in which it is."""
        self.link_since: float | None = None
        """Since when the registry hears this node, or does not."""
        self.verdict_at: float | None = None
        """When the registry last said something of this node."""
        self.last_beat_at: float | None = None
        self._state: State | None = None
        self._verdict: NodeStatusMessage | None = None

    def note(self, view: SessionView, now: float) -> None:
        """Look at the session after something happened to it."""
        if view.state is not self._state:
            if self._state is None or (self._state in CONNECTED) != (view.state in CONNECTED):
                self.link_since = now
            self._state, self.state_since = view.state, now
        if view.verdict is not self._verdict:
            self._verdict, self.verdict_at = view.verdict, now

    def beat(self, now: float) -> None:
        """A beat went out."""
        self.last_beat_at = now
