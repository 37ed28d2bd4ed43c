"""A job's demands and the claim that reserves a slot for it (§5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job states; a demand that is left out is no demand."""

    job_id: str
    required_models: tuple[str, ...] = ()
    required_features: tuple[str, ...] = ()
    public: bool = False
    gpu_count: int = 1
    gpu_name: str | None = None
    """Matches a GPU whose name contains it, in upper or lower case."""
    min_gpu_memory_mb: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    allowed_nodes: tuple[str, ...] | None = None
    affinity_key: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A slot reserved for one job on one node. Times are monotonic seconds."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    granted_at: float
    expires_at: float
    memory_mb: int = 0
    """Memory that the job states it needs on each of its GPUs."""
    affinity_key: str | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """A job's demands as filters and index read them; made once per query."""

    job: Job
    allowed: frozenset[str] | None
    gpu_name: str
    """Lower case; empty when any GPU will do."""
    gpu_count: int
    memory_mb: int
    """Free memory needed on each of the GPUs; 0 when the job states none."""

    @classmethod
    def of(cls, job: Job) -> "Demand":
        """Read a job."""
        return cls(
            job,
            None if job.allowed_nodes is None else frozenset(job.allowed_nodes),
            (job.gpu_name or "").lower(),
            job.gpu_count,
            (job.min_gpu_memory_mb or 0) if job.gpu_count > 0 else 0,
        )
