"""What the registry decides by: intervals, limits and weights (§4, §5), and which nodes it admits."""

from dataclasses import dataclass

from gpu_agent.wire.codes import DEFAULT_LIMIT_PERCENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What the registry decides by; the defaults are the protocol's."""

    heartbeat_interval_seconds: float = 15.0
    warmup_heartbeat_interval_seconds: float = 2.0
    heartbeat_timeout_seconds: float = 45.0
    warmup_timeout_seconds: float = 60.0
    healthy_heartbeats_needed: int = 3
    failure_window: int = 5
    failures_in_window: int = 3
    consecutive_failures: int = 3
    flap_limit: int = 3
    """So many exits from `ready` within the window keep a node degraded."""
    flap_window_seconds: float = 600.0
    max_heartbeats_per_second: float = 2000.0
    """Far below what one core can take, so that a burst after an outage finds room."""
    scan_interval_seconds: float = 1.0
    node_status_interval_seconds: float = 60.0
    drain_deadline_seconds: float = 600.0
    claim_ttl_seconds: float = 60.0
    default_max_concurrent_jobs: int = 4
    min_ready_models: int = 1
    required_models: tuple[str, ...] = ()
    offline_retention_seconds: float = 604800.0
    max_offline_records: int = 4096
    """With auth off, when nodes may register under ever new ids: beyond so many the oldest is removed."""
    probe_age_limit_seconds: float = 60.0
    """A heartbeat whose GPU reading is older than this is not healthy."""
    max_cpu_percent: float = DEFAULT_LIMIT_PERCENT
    max_gpu_percent: float = DEFAULT_LIMIT_PERCENT
    max_memory_percent: float = DEFAULT_LIMIT_PERCENT
    weight_load: int = 500
    """The score of a node with all slots free; the other weights likewise."""
    weight_gpu_use: int = 280
    weight_free_memory: int = 220
    weight_round_trip: int = 100
    affinity_bonus: int = 200
    """For the node that last held a job's affinity key."""

    def node_timeout_seconds(self, interval_seconds: float) -> float:
        """Return a node's timeout: at least three of its intervals (§4)."""
        return max(self.heartbeat_timeout_seconds, 3 * interval_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which nodes the registry admits; the defaults are the strict ones."""

    allow_simulated: bool = False
    auth_off: bool = False
