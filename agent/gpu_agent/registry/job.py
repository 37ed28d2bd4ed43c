"""A job's demands and the places reserved for it (§5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job states; every demand left out is no demand."""

    job_id: str
    required_models: tuple[str, ...] = ()
    required_features: tuple[str, ...] = ()
    public: bool = False
    gpu_count: int = 1
    gpu_name: str | None = None
    """Matches a GPU whose name contains it, whatever the case."""
    min_gpu_memory_mb: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed_nodes: tuple[str, ...] | None = None
    affinity_key: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A reserved place for one job on one node. Times are monotonic seconds."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    granted_at: float
    expires_at: float
    memory_mb: int = 0
    """Memory that the job states it needs on each of its GPUs."""
    affinity_key: str | None = None
