"""The agent's state at one moment, for the control API, without anything secret.

Instants are monotonic seconds.
"""

from gpu_agent.node.checks import CheckState
from gpu_agent.node.public_jobs import PublicJobsState
from gpu_agent.records import dataclass
from gpu_agent.session.types import SessionSnapshot, State
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Inventory
from gpu_agent.wire.messages import NodeStatusMessage

CONNECTED = frozenset({State.REGISTERED, State.LEAVING})
"""States in which the registry receives this node's heartbeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The agent's whole state, without its tokens."""

    session: SessionSnapshot
    registry_urls: tuple[str, ...]
    """All addresses of the registry, as in the settings."""
    owner: Owner
    """What the owner states in the settings."""
    public_jobs: PublicJobsState
    """Whether the owner's limits allow jobs of the public pool now."""
    checks: tuple[CheckState, ...] = ()
    """The admission checks of this machine."""
    token_problem: str | None = None
    """Why the last handshake carried no join token; None where it had one, or the node's own."""
    state_problem: str | None = None
    """Why the state directory lacks the identity, or would take no other one; None where it is well."""
    settings_problem: str | None = None
    """What the last reload of the settings did not take over, and why; None where it took all."""
    inventory: Inventory | None
    """None before the first probe has ended."""
    probe_age_seconds: float | None
    state_since: float | None
    link_since: float | None
    """Since when the registry receives this node's heartbeats, or does not."""
    status_received_at: float | None
    last_heartbeat_at: float | None


class SessionTimes:
    """When the session changed."""

    def __init__(self) -> None:
        self.state_since: float | None = None
        """When the session entered its state."""
        self.link_since: float | None = None
        """Since when the registry receives this node's heartbeats, or does not."""
        self.status_received_at: float | None = None
        self.last_heartbeat_at: float | None = None
        self._state: State | None = None
        self._status: NodeStatusMessage | None = None

    def update(self, session: SessionSnapshot, now: float) -> None:
        """Compare the session with the last one. `now`: monotonic seconds."""
        if session.state is not self._state:
            if self._state is None or (self._state in CONNECTED) != (session.state in CONNECTED):
                self.link_since = now
            self._state, self.state_since = session.state, now
        if session.registry_status is not self._status:
            self._status, self.status_received_at = session.registry_status, now
