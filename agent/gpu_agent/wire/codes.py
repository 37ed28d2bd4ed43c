"""Error, reason and close codes and statuses, with what each asks of the agent; node ids.

Source: node protocol §3.3 (errors), §4 (statuses and reasons) and §5.2 (exclusions).
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from gpu_agent.records import dataclass


class NodeStatus(StrEnum):
    """A node's status. Only the registry sets it (principle 1)."""

    REGISTERING = "registering"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    OFFLINE = "offline"


STATUS_COLOURS: Mapping[str, str] = {
    NodeStatus.DEGRADED: "yellow",
    NodeStatus.OFFLINE: "red",
    NodeStatus.DRAINING: "magenta",
    NodeStatus.REGISTERING: "cyan",
    NodeStatus.READY: "green",
}
"""The colour of each status where people see it; the most urgent first, and so lists are sorted."""


class ReasonCode(StrEnum):
    """Why a node has its status (§4)."""

    REGISTERED = "registered"
    HEALTH_CHECKS_PASSED = "health_checks_passed"
    MODEL_MISSING = "model_missing"
    GPU_UNAVAILABLE = "gpu_unavailable"
    CHECK_FAILED = "check_failed"
    WARMUP_TIMEOUT = "warmup_timeout"
    HEALTH_CHECKS_FAILED = "health_checks_failed"
    FLAPPING = "flapping"
    RECOVERED = "recovered"
    DRAIN_REQUESTED = "drain_requested"
    DRAIN_COMPLETE = "drain_complete"
    DRAIN_DEADLINE = "drain_deadline"
    RESUMED = "resumed"
    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    UNREGISTERED = "unregistered"
    REMOVED = "removed"


class ExclusionReason(StrEnum):
    """Why a node cannot take a job (§5.2), in the order of the filters; the first that fails counts."""

    STATUS_NOT_READY = "status_not_ready"
    DISCONNECTED = "disconnected"
    CORDONED = "cordoned"
    NOT_ALLOWED = "not_allowed"
    NOT_IN_PUBLIC_POOL = "not_in_public_pool"
    GPU_UNAVAILABLE = "gpu_unavailable"
    MODEL_NOT_AVAILABLE = "model_not_available"
    FEATURE_NOT_SUPPORTED = "feature_not_supported"
    LABEL_MISMATCH = "label_mismatch"
    CAPACITY_EXCEEDED = "capacity_exceeded"
    RESOURCE_THRESHOLD_EXCEEDED = "resource_threshold_exceeded"


class GpuStatus(StrEnum):
    """What a GPU is for jobs now; the first that applies counts."""

    LOST = "lost"
    """It does not work."""
    UNKNOWN = "unknown"
    """Nothing is known of it now."""
    CLAIMED = "claimed"
    """A claim holds it, an ended one still does, or a job without GPUs of its own runs on it."""
    IDLE = "idle"
    """Its claims leave it idle."""
    USED_WITHOUT_CLAIM = "used_without_claim"
    """Processes or jobs that hold no claim use it."""
    NOT_SCHEDULABLE = "not_schedulable"
    """No claim can get it now."""
    FREE = "free"
    """A claim of one GPU can get it now."""


class ErrorCode(StrEnum):
    """The codes of `node_error` that this protocol names."""

    GPU_REQUIRED = "GPU_REQUIRED"
    INVALID_CAPABILITY_SCHEMA = "INVALID_CAPABILITY_SCHEMA"
    NODE_ID_CONFLICT = "NODE_ID_CONFLICT"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNKNOWN_NODE = "UNKNOWN_NODE"
    SESSION_SUPERSEDED = "SESSION_SUPERSEDED"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    SIMULATED_NODE_REFUSED = "SIMULATED_NODE_REFUSED"
    RATE_LIMITED = "RATE_LIMITED"
    REGISTRY_BUSY = "REGISTRY_BUSY"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class CloseCode(IntEnum):
    """The WebSocket codes with which the registry closes a node's connection (RFC 6455 §7.4)."""

    GOING_AWAY = 1001
    """The registry stops, or the node is offline: it comes back by registering."""
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    """A text frame that is no UTF-8."""
    POLICY_VIOLATION = 1008
    """A rule was broken, a newer session has the node's id, or its token opens nothing any more."""
    INTERNAL_ERROR = 1011
    """A fault of ours."""
    SERVICE_RESTART = 1012
    """The leader has changed, and does not know this session: the node comes back by registering."""
    TRY_AGAIN_LATER = 1013


class Reaction(StrEnum):
    """What the agent does about a refusal."""

    AWAIT_GPU = "await_gpu"
    """Probe on; register again only when a GPU appears."""
    DOWNGRADE_SCHEMA = "downgrade_schema"
    """Retry once with the highest version in `details.supported`, else stop."""
    FORGET_ID = "forget_id"
    """Forget the stored id, register with null at once; a second conflict in a row backs off."""
    RETRY_AT_CEILING = "retry_at_ceiling"
    """Retry at the backoff ceiling: the cause needs a person or a new version."""
    REGISTER_AGAIN = "register_again"
    """Send `node_register` again at once."""
    YIELD = "yield"
    """Close and wait for the operator or a restart: a newer session holds the identity."""
    STOP = "stop"
    """End the session for good."""
    BACK_OFF = "back_off"
    """Exponential backoff with full jitter, honouring `retry_after_seconds`."""


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One row of the protocol's table of codes."""

    meaning: str
    reaction: Reaction


CODES: dict[ErrorCode, CodeEntry] = {
    ErrorCode.GPU_REQUIRED: CodeEntry("no usable GPU declared", Reaction.AWAIT_GPU),
    ErrorCode.INVALID_CAPABILITY_SCHEMA: CodeEntry(
        "capability schema version not supported", Reaction.DOWNGRADE_SCHEMA
    ),
    ErrorCode.NODE_ID_CONFLICT: CodeEntry("the id is held by another", Reaction.FORGET_ID),
    ErrorCode.INVALID_MESSAGE: CodeEntry("malformed message", Reaction.RETRY_AT_CEILING),
    ErrorCode.UNKNOWN_NODE: CodeEntry(
        "a heartbeat for a node this session did not register", Reaction.REGISTER_AGAIN
    ),
    ErrorCode.SESSION_SUPERSEDED: CodeEntry("a newer session proved the same identity", Reaction.YIELD),
    ErrorCode.UNAUTHORIZED: CodeEntry("credential missing or unknown", Reaction.RETRY_AT_CEILING),
    ErrorCode.FORBIDDEN: CodeEntry("credential not allowed", Reaction.RETRY_AT_CEILING),
    ErrorCode.SIMULATED_NODE_REFUSED: CodeEntry("simulated nodes are not allowed here", Reaction.STOP),
    ErrorCode.RATE_LIMITED: CodeEntry("too many attempts", Reaction.BACK_OFF),
    ErrorCode.REGISTRY_BUSY: CodeEntry("the registry cannot take this now", Reaction.BACK_OFF),
    ErrorCode.INTERNAL_ERROR: CodeEntry("a fault inside the registry", Reaction.BACK_OFF),
}

ALIASES: dict[str, ErrorCode] = {"NO_GPU_AVAILABLE": ErrorCode.GPU_REQUIRED}
"""Codes of older schedulers, read as ours (§3.3, §9)."""

DEFAULT_LIMIT_PERCENT = 90.0
"""CPU, GPU or memory use above which a registry excludes a node, unless it is configured otherwise (§5.2)."""

NODE_ID_PATTERN = "[A-Za-z0-9._-]{1,128}"
"""A node id, whole (§3.1)."""

MAX_LABELS = 256
"""Of one node, and of one demand."""

MAX_TEXT = 4096
"""Characters of a sentence in a message, such as a reason."""

OLDEST_SCHEMA = "1.0"
"""The schema of a declaration that names none (R-04)."""

SUPPORTED_SCHEMA_VERSIONS: tuple[str, ...] = (OLDEST_SCHEMA, "1.1")

NODE_SCOPE = "node"
"""The scope of an admission check of the whole node; any other scope is the UUID of a GPU (§4)."""

NODE_CHECKS: tuple[str, ...] = ("gpu_count", "hook")
"""The admission checks of the whole node."""

GPU_CHECKS: tuple[str, ...] = (
    "gpu_model",
    "recovery_action",
    "compute_mode",
    "fabric",
    "pcie_link",
    "memory_bandwidth",
)
"""The admission checks of each GPU."""


def known(code: str) -> ErrorCode:
    """Read a code from the wire; one that we do not know counts as `INTERNAL_ERROR` (§3.3)."""
    if code in ALIASES:
        return ALIASES[code]
    return ErrorCode(code) if code in ErrorCode.__members__ else ErrorCode.INTERNAL_ERROR


def reaction_to(code: str) -> Reaction:
    """What the agent does about a code from the wire."""
    return CODES[known(code)].reaction


EXPLAIN_ADVICE = ": `POST /v1/dispatch/explain` with the same body says why, node by node"
"""The end of the detail of `NO_AVAILABLE_NODE`: the next step of a program."""
