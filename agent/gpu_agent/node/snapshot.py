"""The agent's state at one moment, for the control API, without anything secret. Instants are monotonic seconds."""

from dataclasses import dataclass

from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.session.types import SessionSnapshot, State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Inventory
from gpu_agent.wire.messages import NodeStatusMessage

# The agent as it stands at one moment: what whoever asks on this machine is told of, and nothing secret.
#
# A frozen picture, made by the loop and read by anybody. It decides nothing and formats nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that the agent knows, without its tokens. Instants are monotonic seconds."""

    session: SessionSnapshot
    registry_url: str
    owner: Owner
    """What the owner wishes."""
    public_jobs: PublicJobsState
    """What comes of that for jobs of the public pool, now."""
    inventory: Inventory | None
    """None before the first probe has ended."""
    probe_age_seconds: float | None
    state_since: float | None
    link_since: float | None
    """Since when the registry hears this node, or does not."""
    status_received_at: float | None
    last_heartbeat_at: float | None


# How the session has gone so far, in instants: since when it stands as it does, when it last beat.
#
# It is told, and reads no clock. Instants are monotonic seconds.


CONNECTED = frozenset({State.REGISTERED, State.LEAVING})
"""States in which the registry hears this node."""


class SessionTimes:
    """What a view alone does not tell: when."""

    def __init__(self) -> None:
        self.state_since: float | None = None
        """When the session came into the state in which it is."""
        self.link_since: float | None = None
        """Since when the registry hears this node, or does not."""
        self.status_received_at: float | None = None
        """When the registry last said something of this node."""
        self.last_heartbeat_at: float | None = None
        self._state: State | None = None
        self._verdict: NodeStatusMessage | None = None

    def note(self, view: SessionSnapshot, now: float) -> None:
        """Look at the session after something happened to it."""
        if view.state is not self._state:
            if self._state is None or (self._state in CONNECTED) != (view.state in CONNECTED):
                self.link_since = now
            self._state, self.state_since = view.state, now
        if view.registry_status is not self._verdict:
            self._verdict, self.status_received_at = view.registry_status, now

    def beat(self, now: float) -> None:
        """A beat went out."""
        self.last_heartbeat_at = now
