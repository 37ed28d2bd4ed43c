"""A job's demands in the form in which filters and index ask for them."""

from dataclasses import dataclass

from gpu_agent.registry.job import Job


@dataclass(frozen=True, slots=True)
class Demand:
    """What a node must have for a job; made once per question."""

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
