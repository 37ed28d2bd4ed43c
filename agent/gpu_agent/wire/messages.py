"""Every message of the node protocol (§3) as a model, one union per direction, and their field types.

Reading is strict about types (a string is not a number, a bool is not an int) and tolerant where the protocol
says so: a fractional integer is rounded, null stands for absent, unknown fields are ignored (§3.1, principle
4). Writing is exact. `codes` names the codes and reasons, `codec` turns bytes into messages.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    Strict,
    StringConstraints,
    WithJsonSchema,
    model_serializer,
)
from pydantic_core import CoreSchema

from gpu_agent.wire.codes import MAX_LABELS, MAX_TEXT, NODE_ID_PATTERN, NODE_SCOPE, OLDEST_SCHEMA

MAX_INTEGER = 2**53
"""Largest integer that every JSON reader keeps exact."""
MAX_MAGNITUDE = 1e15
"""Beyond any figure of a machine; sums and products of such numbers stay finite."""
MAX_GPUS, MAX_MODELS = 256, 4096
"""Of one node (§3.1), MIG devices included."""
MAX_NAME = 1024
"""Characters of a name."""
MAX_REASONS, MAX_FEATURES, MAX_JOBS = 64, 1024, 20_000
"""More than a frame of 1 MiB can sensibly hold; lists end being read at their first fault."""
MAX_CHECKS, MAX_CHECK_DETAIL, MAX_CHECKS_TEXT = 2048, 256, 128 * 1024
"""Of one node: admission checks, characters of one detail, and characters of all checks together."""


class WireModel(BaseModel):
    """Base of every message and part: frozen, strict, deaf to unknown fields.

    Writing leaves out what is `None`, except the fields that the protocol wants as null.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": True},
        defer_build=True,
    )

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if value is not None or key in _WRITTEN_AS_NULL}

    def as_json(self) -> dict[str, Any]:
        """Return what `model_dump(mode="json")` returns, in a third of its time."""
        return {
            key: value if type(value) in _PLAIN_TYPES else _as_json(value)
            for key, value in self.__dict__.items()
            if value is not None or key in _WRITTEN_AS_NULL
        }


_WRITTEN_AS_NULL = frozenset({"memory_gb", "node_id"})
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})


def _as_json(value: object) -> object:
    """The types of values that were read are exact: `isinstance` would take longer than all else here."""
    kind = type(value)
    if kind is tuple or kind is list:
        return [one if type(one) in _PLAIN_TYPES else _as_json(one) for one in value]  # type: ignore[attr-defined]
    if kind is dict:
        return {key: _as_json(one) for key, one in value.items()}  # type: ignore[attr-defined]
    return value.as_json() if isinstance(value, WireModel) else value


def _rounded(value: float) -> int:
    return round(value)


def _empty_is_absent(value: str | None) -> str | None:
    return value or None


def _null_is_empty_list(value: object) -> object:
    return () if value is None else value


def _null_is_empty_object(value: object) -> object:
    return {} if value is None else value


def _null_is_false(value: object) -> object:
    return False if value is None else value


def _names_of_flags(value: object) -> object:
    """Accept both forms of `advanced_features`: a list of names, or an object of flags."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        wrong = [name for name, flag in value.items() if flag not in (True, False, None)]
        if wrong:
            raise ValueError(f"flag {wrong[0]!r} must be true, false or null")
        return tuple(name for name, flag in value.items() if flag)
    return value


_WholeOrFractional = Annotated[
    Annotated[int, Field(ge=0, le=MAX_INTEGER)]
    | Annotated[float, Field(ge=0, le=MAX_INTEGER), AfterValidator(_rounded)],
    Field(union_mode="left_to_right"),
]


class _ReadAsWhole:
    """Reads a fractional number too; what comes out is an `int`, and type checkers see no other."""

    def __get_pydantic_core_schema__(self, _source: type[int], handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(_WholeOrFractional)


WireInt = Annotated[int, _ReadAsWhole(), WithJsonSchema({"type": "integer", "minimum": 0})]
"""A whole number on the wire; a fractional one is rounded when read."""
Finite = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]
"""A number that can be reckoned with: finite, and so is its product with any other figure."""
Seconds = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)]
"""A span in seconds; fractions allowed."""
Name = Annotated[str, StringConstraints(max_length=MAX_NAME)]
"""A word, name or id that the reader will keep, compare and print."""
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
"""Words for a person."""
NodeId = Annotated[str, StringConstraints(pattern=f"^{NODE_ID_PATTERN}$")]
"""A node's identity."""
SuggestedNodeId = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,128}$")] | None,
    AfterValidator(_empty_is_absent),
]
"""An identity the node asks for; empty or null asks the registry to assign one."""
SchemaVersion = Annotated[Name | None, AfterValidator(_empty_is_absent)]
"""A capability schema version; empty or null means "1.0"."""
Flag = Annotated[bool, BeforeValidator(_null_is_false)]
"""A boolean for which null means false."""
FeatureNames = Annotated[
    tuple[Name, ...],
    Strict(strict=False),
    Field(max_length=MAX_FEATURES, fail_fast=True),
    BeforeValidator(_names_of_flags),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": {"type": ["boolean", "null"]}},
                {"type": "null"},
            ]
        }
    ),
]
"""Names of features, from a list or from an object of flags."""
_Item = TypeVar("_Item")
Listed = Annotated[
    tuple[_Item, ...], Strict(strict=False), Field(fail_fast=True), BeforeValidator(_null_is_empty_list)
]
"""A list for which null means empty. Not strict itself: behind a validator it is met as a Python list."""


def entries_at_most(most: int) -> BeforeValidator:
    """Refuse an object with more entries before any is looked at: each fault found costs time and memory."""

    def counted(value: object) -> object:
        if isinstance(value, Mapping) and len(value) > most:
            raise ValueError(f"at most {most} entries are allowed, not {len(value)}")
        return value

    return BeforeValidator(counted)


_Value = TypeVar("_Value")
Mapped = Annotated[dict[str, _Value], BeforeValidator(_null_is_empty_object)]
"""An object for which null means empty."""
ModelStates = Annotated[dict[str, Name], Field(max_length=MAX_MODELS), entries_at_most(MAX_MODELS)]
"""State by model id; versions of one model share a key."""
Features = Annotated[Mapped[bool | None], Field(max_length=MAX_FEATURES), entries_at_most(MAX_FEATURES)]
"""Whether a feature is there, by its name; null is unknown."""
JobIds = Annotated[tuple[Name, ...], Field(max_length=MAX_JOBS, fail_fast=True)]
"""Ids of jobs in flight."""


class GpuDeclaration(WireModel):
    """A GPU as registered. `memory_gb` is whole GiB, null when unknown (schema 1.1)."""

    name: Name
    memory_gb: WireInt | None = None
    uuid: Name | None = None
    vendor: Name | None = None
    index: WireInt | None = None
    memory_mb: WireInt | None = None
    memory_kind: Name | None = None
    compute_capability: Name | None = None
    pci_bus_id: Name | None = None
    health: Name | None = None
    parent_uuid: Name | None = None


class Hardware(WireModel):
    """The machine as registered: whole GiB, whole cores. GPUs are not identified across the fleet (R-01)."""

    cpu_cores: WireInt
    memory_gb: WireInt
    gpus: Annotated[Listed[GpuDeclaration], Field(max_length=MAX_GPUS)] = ()
    driver_version: Name | None = None
    cuda_version: Name | None = None


class InstalledModel(WireModel):
    """A model in one of the node's caches."""

    model_id: Annotated[Name, Field(min_length=1)]
    version: Name
    kind: Name | None = None
    src_lang: Name | None = None
    tgt_lang: Name | None = None
    dialect: Name | None = None
    enabled: bool = True
    status: Name = "ready"
    source: Name | None = None
    revision: Name | None = None
    size_bytes: WireInt | None = None
    format: Name | None = None


class NodeRegister(WireModel):
    """Node → registry (§3.1): declares capability, sets no status."""

    type: Literal["node_register"] = "node_register"
    version: Name
    capability_schema_version: SchemaVersion = None
    node_id: SuggestedNodeId = None
    platform: Name | None = None
    hardware: Hardware
    installed_models: Annotated[Listed[InstalledModel], Field(max_length=MAX_MODELS)] = ()
    features_supported: Features = Field(default_factory=dict)
    advanced_features: FeatureNames = ()
    accept_public_jobs: Flag = False
    capability_state: ModelStates | None = None
    labels: Annotated[Mapped[Name], Field(max_length=MAX_LABELS), entries_at_most(MAX_LABELS)] = Field(
        default_factory=dict
    )
    hostname: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Shown beside the id, never an identity."""
    max_concurrent_jobs: WireInt | None = None
    endpoint: Text | None = None
    simulated: Flag = False
    running_jobs: JobIds | None = None

    @property
    def schema_version(self) -> str:
        """The capability schema that it follows."""
        return self.capability_schema_version or OLDEST_SCHEMA


class ResourceUsage(WireModel):
    """The machine's load at a heartbeat. Unknown figures are absent, never 0."""

    cpu_percent: Finite
    mem_percent: Finite
    gpu_percent: Finite | None = None
    gpu_mem_percent: Finite | None = None
    running_jobs: WireInt | None = None


class GpuFigures(WireModel):
    """One GPU's figures at a heartbeat (schema 1.1)."""

    uuid: Name
    utilization_percent: Finite | None = None
    memory_used_mb: WireInt | None = None
    memory_total_mb: WireInt | None = None
    temperature_c: Finite | None = None
    power_w: Finite | None = None
    processes: WireInt | None = None
    """Compute processes; absent where they are unknown."""
    health: Name = "ok"
    reasons: Annotated[tuple[Name, ...], Field(max_length=MAX_REASONS, fail_fast=True)] = ()


class NodeCheck(WireModel):
    """One admission check, as the agent last found it (§4)."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scope: Annotated[Name, StringConstraints(min_length=1)] = NODE_SCOPE
    """`node`, or the UUID of one GPU."""
    ok: bool
    detail: Annotated[str, StringConstraints(max_length=MAX_CHECK_DETAIL)] = ""
    at: Finite
    """When it ended, in Unix seconds; information, never evidence."""


def _short_enough(checks: tuple[NodeCheck, ...]) -> tuple[NodeCheck, ...]:
    if sum(len(one.name) + len(one.scope) + len(one.detail) for one in checks) > MAX_CHECKS_TEXT:
        raise ValueError(f"all checks together may have {MAX_CHECKS_TEXT} characters")
    return checks


NodeChecks = Annotated[
    tuple[NodeCheck, ...], Field(max_length=MAX_CHECKS, fail_fast=True), AfterValidator(_short_enough)
]
"""The admission checks of a node, all of them."""


class NodeHeartbeat(WireModel):
    """Node → registry (§3.4). What changed is sent whole: each part is a full replacement."""

    type: Literal["node_heartbeat"] = "node_heartbeat"
    node_id: NodeId
    timestamp: WireInt
    """Milliseconds since the epoch; information, never evidence."""
    resource_usage: ResourceUsage
    installed_models: (
        Annotated[tuple[InstalledModel, ...], Field(max_length=MAX_MODELS, fail_fast=True)] | None
    ) = None
    capability_state: ModelStates | None = None
    gpus: Annotated[tuple[GpuFigures, ...], Field(max_length=MAX_GPUS, fail_fast=True)] | None = None
    probe_age_seconds: Seconds | None = None
    """Age of the last good GPU reading."""
    running_jobs: JobIds | None = None
    sequence: WireInt | None = None
    accept_public_jobs: bool | None = None
    labels: Annotated[dict[str, Name], Field(max_length=MAX_LABELS), entries_at_most(MAX_LABELS)] | None = (
        None
    )
    max_concurrent_jobs: WireInt | None = None
    hardware: Hardware | None = None
    checks: NodeChecks | None = None
    """Empty from an agent that can run checks and has no result yet; absent where nothing changed."""


class NodeUnregister(WireModel):
    """Node → registry (§3.6): planned shutdown."""

    type: Literal["node_unregister"] = "node_unregister"
    node_id: NodeId
    reason: Text = ""
    drain: Flag = False
    deadline_seconds: Seconds | None = None


class NodeError(WireModel):
    """A refusal (registry → node), or an internal fault that belongs to no job (node → registry) (§3.3)."""

    type: Literal["node_error", "error"] = "node_error"
    node_id: SuggestedNodeId = None
    code: Name
    message: Text = ""
    details: dict[str, Any] | None = None
    retry_after_seconds: Seconds | None = None


class NodeRegisterAck(WireModel):
    """Registry → node (§3.2): the id is the registry's verdict; the status is always `registering` (A-2)."""

    type: Literal["node_register_ack"] = "node_register_ack"
    node_id: NodeId
    message: str = "registered"
    status: str = "registering"
    node_token: str | None = Field(default=None, repr=False)
    capability_schema_version: SchemaVersion = None
    heartbeat_interval_seconds: Seconds | None = None
    warmup_heartbeat_interval_seconds: Seconds | None = None
    heartbeat_timeout_seconds: Seconds | None = None
    session_epoch: WireInt | None = None


class Check(WireModel):
    """One health check behind a status."""

    name: str
    ok: bool
    detail: str = ""


class StatusDetails(WireModel):
    """What stands behind a status, and what would change it."""

    checks: Listed[Check] = ()
    healthy_beats: WireInt | None = None
    beats_needed: WireInt | None = None
    in_flight_jobs: WireInt | None = None
    drain_deadline: Finite | None = None
    """Unix time at which a drain ends whatever runs."""
    clears_when: str | None = None


class NodeStatusMessage(WireModel):
    """Registry → node (§3.5): the status it has given the node, on every change and once a minute."""

    type: Literal["node_status"] = "node_status"
    node_id: NodeId
    status: str
    reason: str = ""
    """A sentence for a person."""
    timestamp: Finite | None = None
    """Seconds since the epoch."""
    previous_status: str | None = None
    reason_code: str | None = None
    since: Finite | None = None
    periodic: bool = False
    heartbeat_interval_seconds: Seconds | None = None
    details: StatusDetails | None = None


class NodeControl(WireModel):
    """Registry → node (§3.6): `reregister`, `refresh` or `check`; the node logs any other, obeys none."""

    type: Literal["node_control"] = "node_control"
    command: str
    reason: str | None = None


FromNode = Annotated[
    NodeRegister | NodeHeartbeat | NodeUnregister | NodeError,
    Field(discriminator="type"),
]
"""What a node may say."""
FromRegistry = Annotated[
    NodeRegisterAck | NodeError | NodeStatusMessage | NodeControl,
    Field(discriminator="type"),
]
"""What a registry may say."""
