"""What each threshold means, in the words of docs/settings.md, and its unit. Says nothing of its value."""

from collections.abc import Mapping

MEANINGS: Mapping[str, str] = {
    "heartbeat_interval_seconds": "how often a settled node beats",
    "warmup_heartbeat_interval_seconds": "how often a registering one does",
    "heartbeat_timeout_seconds": "silence that makes a node offline; never less than three of its intervals",
    "warmup_timeout_seconds": "time to become ready before `degraded`",
    "healthy_beats_needed": "healthy beats in a row that make a node ready",
    "failure_window": "how many of the last beats flapping is judged by",
    "failures_in_window": "unhealthy ones among them that degrade a node",
    "consecutive_failures": "unhealthy beats in a row that degrade a node",
    "flap_limit": "so many exits from `ready` within the flap window keep a node `degraded`",
    "flap_window_seconds": "how long such an exit counts",
    "max_beats_per_second": "the intervals of a large fleet grow so that it beats no oftener",
    "scan_interval_seconds": "how late a timeout may be noticed",
    "node_status_interval_seconds": "how often a node is told its status besides changes",
    "drain_deadline_seconds": "how long a drain waits for jobs",
    "claim_ttl_seconds": "how long a claim lives unless renewed",
    "default_max_concurrent_jobs": "places of a node that states none",
    "min_ready_models": "ready models that a node with models needs",
    "required_models": "models that every node must have ready; in a variable separated by commas",
    "offline_retention_seconds": "how long an offline node, and a token that ended, is remembered",
    "max_offline_records": "with auth off, so many offline nodes are remembered; the oldest go first",
    "probe_age_limit_seconds": "a beat whose GPU reading is older is not healthy",
    "max_cpu_percent": "CPU use above which a node gets no new job",
    "max_gpu_percent": "GPU use above which a node gets no new job",
    "max_memory_percent": "memory use above which a node gets no new job",
    "weight_load": "how much free places count in choosing among able nodes",
    "weight_gpu_use": "how much idle GPUs count",
    "weight_free_memory": "how much free GPU memory counts",
    "weight_round_trip": "how much it counts that a node's network is near",
    "affinity_bonus": "how much it counts that a node last held the job's affinity key",
}

_UNITS = {
    "_per_second": "beats per second",
    "_seconds": "seconds",
    "_percent": "percent",
    "_models": "models",
    "_jobs": "jobs",
    "_records": "records",
    "flap_limit": "exits",
    "weight_load": "points",
    "weight_gpu_use": "points",
    "weight_free_memory": "points",
    "weight_round_trip": "points",
    "affinity_bonus": "points",
}


def unit_of(name: str) -> str:
    """Return the unit in which a threshold is given."""
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "beats")
