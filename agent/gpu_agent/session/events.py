"""What happens to a node's session, in the past tense."""

from dataclasses import dataclass

from gpu_agent.wire.declaration import Declaration
from gpu_agent.wire.messages import FromRegistry


@dataclass(frozen=True, slots=True)
class Started:
    """The agent is up and has read its identity; nothing is connected."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The probe or the owner's configuration now says this; sent whenever it may have changed."""

    declaration: Declaration
    running_jobs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """The owner changed what only a registration tells, such as the endpoint; `Declared` follows (§3.1)."""


@dataclass(frozen=True, slots=True)
class FaultFound:
    """Something of the machine failed that belongs to no job, such as a GPU (§3.3)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The WebSocket is open."""


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No WebSocket came of an attempt: refused, timed out, or answered with an HTTP status."""

    detail: str
    http_status: int | None = None
    retry_after_seconds: float | None = None
    lasting: bool = False
    """True where only a person can mend it: there is no haste."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """The registry said something."""

    message: FromRegistry


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The WebSocket closed without a `Disconnect` of ours."""

    code: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The process is to end: say goodbye and leave; with `drain`, after its jobs."""

    reason: str
    drain: bool = False
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The owner wants the machine emptied: no new jobs, offline after the last, and to stay so (§3.6)."""

    reason: str
    deadline_seconds: float | None = None
    """None leaves it to the registry."""


@dataclass(frozen=True, slots=True)
class ResumeAsked:
    """The owner takes the machine back: lifts a drain of his own, and has it register."""


@dataclass(frozen=True, slots=True)
class RefreshAsked:
    """The owner wants the machine probed again, and the registry told of all of it."""


Order = DrainAsked | ResumeAsked | RefreshAsked
"""What the owner of the machine asks of the agent that runs on it."""

Event = (
    Started
    | Declared
    | OwnerChanged
    | FaultFound
    | Connected
    | ConnectFailed
    | MessageReceived
    | Disconnected
    | StopRequested
    | Order
)
