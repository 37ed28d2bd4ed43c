"""What a session asks its shell to do, in the imperative, to be carried out in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gpu_agent.wire.beat import BeatChanges
from gpu_agent.wire.messages import NodeError, NodeRegister, NodeUnregister


class Credential(StrEnum):
    """Which of the agent's credentials a handshake carries (§2)."""

    BEST = "best"
    """The node token if there is one, else the join token, else none."""
    JOIN = "join"
    """The join token: the node token was refused with 401."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the WebSocket; the outcome comes back as `Connected` or `ConnectFailed`."""

    credential: Credential = Credential.BEST


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the WebSocket, or give up opening it, and hear no more of it: no event of it follows."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message that is ready as it stands."""

    message: NodeRegister | NodeUnregister | NodeError


@dataclass(frozen=True, slots=True)
class SendBeat:
    """Compose a beat from the newest reading and send it; the shell adds time and figures."""

    node_id: str
    sequence: int
    changed: BeatChanges
    knows_schemas: bool = False
    """True when the registry has named a schema: it is no older scheduler (§9)."""


@dataclass(frozen=True, slots=True)
class SaveIdentity:
    """Store the registry's verdict before anything else is sent."""

    node_id: str
    node_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ForgetIdentity:
    """Set the stored identity aside, keeping a copy for the operator."""

    node_id: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Read the machine again now; the outcome comes back as `Declared`."""


@dataclass(frozen=True, slots=True)
class Note:
    """Log an event under an identifier, with its fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    problem: bool = False
    """True when an operator should look."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process; `failed` when a person must act before it may run again."""

    reason: str
    failed: bool = False


Action = Connect | Disconnect | Send | SendBeat | SaveIdentity | ForgetIdentity | Probe | Note | Exit
