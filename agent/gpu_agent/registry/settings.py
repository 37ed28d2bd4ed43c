"""What the registry decides by: intervals, limits and weights (§4, §5), and which nodes it admits.

A threshold is one field here: it is a setting of `registry serve` too, and `registry settings` shows it.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gpu_agent.wire.codes import DEFAULT_LIMIT_PERCENT, GPU_CHECKS, NODE_CHECKS
from gpu_agent.wire.settings import Setting

Span = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]
Percent = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


def _names(value: object) -> object:
    """Accept `a,b` where a list of names is meant: environment and flags have no lists."""
    return (
        tuple(name for part in value.split(",") if (name := part.strip()))
        if isinstance(value, str)
        else value
    )


def _check_name(name: str) -> str:
    known = (*NODE_CHECKS, *GPU_CHECKS)
    if name not in known:
        raise ValueError(f"{name!r} is no check; there are: {', '.join(known)}")
    return name


class Admission(BaseModel):
    """The table `[admission]`: what a node must have passed before it takes jobs (§4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required_checks: Annotated[
        tuple[Annotated[str, AfterValidator(_check_name)], ...],
        BeforeValidator(_names),
        Setting(
            "the checks that every node must pass before it takes jobs: "
            f"{', '.join(f'`{name}`' for name in (*NODE_CHECKS, *GPU_CHECKS))}; separated by commas in a "
            "variable. A node whose agent runs no checks passes",
            kind="list of names",
        ),
    ] = ()


_NO_CHECKS = Admission()


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the registry decides by; the defaults are the protocol's. Times are seconds."""

    heartbeat_interval_seconds: Annotated[
        Span, Setting("time between two heartbeats of a settled node", option="--heartbeat-interval-seconds")
    ] = 15.0
    warmup_heartbeat_interval_seconds: Annotated[
        Span,
        Setting(
            "time between two heartbeats of a registering node", option="--warmup-heartbeat-interval-seconds"
        ),
    ] = 2.0
    heartbeat_timeout_seconds: Annotated[
        Span,
        Setting(
            "a node without a heartbeat for this long is offline; never less than three of its intervals",
            option="--heartbeat-timeout-seconds",
        ),
    ] = 45.0
    warmup_timeout_seconds: Annotated[
        Span,
        Setting(
            "a registering node that is not ready after this time becomes `degraded`",
            option="--warmup-timeout-seconds",
        ),
    ] = 60.0
    healthy_heartbeats_needed: Annotated[
        Count, Setting("healthy heartbeats in a row that make a node ready", kind="heartbeats", advanced=True)
    ] = 3
    failure_window: Annotated[
        Count,
        Setting(
            "the number of last heartbeats among which failures are counted", kind="heartbeats", advanced=True
        ),
    ] = 5
    failures_in_window: Annotated[
        Count,
        Setting(
            "unhealthy heartbeats among these that make a node `degraded`; no more than the window has",
            kind="heartbeats",
            advanced=True,
        ),
    ] = 3
    consecutive_failures: Annotated[
        Count,
        Setting(
            "unhealthy heartbeats in a row that make a node `degraded`", kind="heartbeats", advanced=True
        ),
    ] = 3
    flap_limit: Annotated[
        Count,
        Setting(
            "a node that has left `ready` this often within the flap window stays `degraded`",
            kind="exits",
            advanced=True,
        ),
    ] = 3
    """So many exits from `ready` within the window keep a node degraded."""
    flap_window_seconds: Annotated[Span, Setting("how long such an exit counts", advanced=True)] = 600.0
    max_heartbeats_per_second: Annotated[
        Rate,
        Setting(
            "the intervals of a large fleet grow so that all nodes together send no more heartbeats than "
            "this",
            kind="heartbeats per second",
            advanced=True,
        ),
    ] = 4000.0
    """Far below what one core can take, so that a burst after an outage finds room."""
    scan_interval_seconds: Annotated[Span, Setting("how late a timeout may be noticed", advanced=True)] = 1.0
    node_status_interval_seconds: Annotated[
        Span, Setting("how often a node receives its status, besides every change", advanced=True)
    ] = 60.0
    drain_deadline_seconds: Annotated[
        Span,
        Setting(
            "how long a drain waits for jobs unless it states a deadline", option="--drain-deadline-seconds"
        ),
    ] = 600.0
    claim_ttl_seconds: Annotated[
        Span, Setting("a claim that is not renewed expires after this time", option="--claim-ttl-seconds")
    ] = 60.0
    claim_idle_seconds: Annotated[
        Span,
        Setting("a claim whose GPUs stay idle for this time is reported", advanced=True),
    ] = 900.0
    queue_limit: Annotated[
        Count,
        Setting("jobs that may wait for capacity at a time", kind="jobs", advanced=True),
    ] = 1024
    queue_reserve_after_seconds: Annotated[
        Span,
        Setting("after this time the first waiting job for whole GPUs has them reserved", advanced=True),
    ] = 60.0
    default_max_concurrent_jobs: Annotated[
        Count,
        Setting("slots of a node that states none", option="--default-max-concurrent-jobs"),
    ] = 4
    min_ready_models: Annotated[
        int, Field(ge=0), Setting("ready models that a node with models needs", kind="models", advanced=True)
    ] = 1
    required_models: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        Setting(
            "models that every node must have ready; separated by commas in a variable",
            option="--required-models",
            metavar="NAMES",
        ),
    ] = ()
    admission: Annotated[Admission, Setting("the checks that nodes must pass", kind="table")] = _NO_CHECKS
    offline_retention_seconds: Annotated[
        Span,
        Setting("an offline node, and a token that ended, is deleted after this time", advanced=True),
    ] = 604800.0
    max_offline_records: Annotated[
        Count,
        Setting(
            "with auth off, the most offline nodes that are stored; the oldest are deleted first",
            kind="records",
            advanced=True,
        ),
    ] = 4096
    """With auth off, when nodes may register under ever new ids: beyond so many the oldest is removed."""
    max_offline_bytes: Annotated[
        int,
        Field(ge=1024 * 1024),
        Setting(
            "the most memory of what offline nodes declare; the oldest are deleted first",
            kind="bytes",
            advanced=True,
        ),
    ] = 256 * 1024 * 1024
    probe_age_limit_seconds: Annotated[
        Span, Setting("a heartbeat with an older GPU reading is unhealthy", advanced=True)
    ] = 60.0
    """A heartbeat whose GPU reading is older than this is not healthy."""
    max_cpu_percent: Annotated[
        Percent, Setting("CPU use above which a node receives no new job", option="--max-cpu-percent")
    ] = DEFAULT_LIMIT_PERCENT
    max_gpu_percent: Annotated[
        Percent, Setting("GPU use above which a node receives no new job", option="--max-gpu-percent")
    ] = DEFAULT_LIMIT_PERCENT
    max_memory_percent: Annotated[
        Percent, Setting("memory use above which a node receives no new job", option="--max-memory-percent")
    ] = DEFAULT_LIMIT_PERCENT
    weight_load: Annotated[
        Weight,
        Setting(
            "points for free slots, all of them, when eligible nodes are compared",
            kind="points",
            advanced=True,
        ),
    ] = 500
    """The score of a node with all slots free; the other weights likewise."""
    weight_gpu_use: Annotated[Weight, Setting("points for idle GPUs", kind="points", advanced=True)] = 280
    weight_free_memory: Annotated[
        Weight, Setting("points for free GPU memory", kind="points", advanced=True)
    ] = 220
    weight_round_trip: Annotated[
        Weight, Setting("points for a short network round trip", kind="points", advanced=True)
    ] = 100
    affinity_bonus: Annotated[
        Weight,
        Setting(
            "points for the node that last ran a job with the same affinity key", kind="points", advanced=True
        ),
    ] = 200
    """For the node that last held a job's affinity key."""

    def node_timeout_seconds(self, interval_seconds: float) -> float:
        """Return a node's timeout: at least three of its intervals (§4)."""
        return max(self.heartbeat_timeout_seconds, 3 * interval_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which nodes the registry admits; the defaults are the strict ones."""

    allow_simulated: bool = False
    auth_off: bool = False
