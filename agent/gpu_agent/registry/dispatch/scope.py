"""Which jobs something about a node refuses: as data that can be asked, and as words.

Exact: a scope covers a job just when the filter of its reason refuses it. Finds nothing out about nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.naming import listed
from gpu_agent.registry.quoting import quoted


@dataclass(frozen=True, slots=True)
class EveryJob:
    """Whatever the job."""

    def covers(self, _demand: Demand) -> bool:
        """Say whether a job is refused."""
        return True

    def __str__(self) -> str:
        return "every job"


@dataclass(frozen=True, slots=True)
class JobsForOthers:
    """Jobs that may run on other nodes only."""

    node_id: str

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return demand.allowed is not None and self.node_id not in demand.allowed

    def __str__(self) -> str:
        return "jobs whose allowed_nodes leave it out"


@dataclass(frozen=True, slots=True)
class PublicJobs:
    """Jobs of the public pool."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return demand.job.public

    def __str__(self) -> str:
        return "public jobs"


@dataclass(frozen=True, slots=True)
class JobsOfMoreGpus:
    """Jobs that need more usable GPUs of a name than there are."""

    gpus: tuple[tuple[str, int], ...]
    """How many of each name."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        named = sum(count for name, count in self.gpus if demand.gpu_name in name.lower())
        return named < demand.gpu_count

    def __str__(self) -> str:
        total = sum(count for _, count in self.gpus)
        if len(self.gpus) > 1:
            each = ", ".join(f"{count} {quoted(name)}" for name, count in self.gpus)
            return f"jobs that need more than {total} GPUs ({each}), or GPUs of another name"
        other = f", or GPUs that are no {quoted(self.gpus[0][0])}" if self.gpus else ""
        return f"jobs that need more than {total} GPU{'' if total == 1 else 's'}{other}"


@dataclass(frozen=True, slots=True)
class JobsWithModel:
    """Jobs that need a certain model."""

    model_id: str

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return self.model_id in demand.job.required_models

    def __str__(self) -> str:
        return f"jobs that need model {quoted(self.model_id)}"


@dataclass(frozen=True, slots=True)
class JobsWithOtherModels:
    """Jobs that need a model which is not ready."""

    ready: frozenset[str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.ready.issuperset(demand.job.required_models)

    def __str__(self) -> str:
        return (
            f"jobs that need any model but {listed(self.ready)}" if self.ready else "jobs that need a model"
        )


@dataclass(frozen=True, slots=True)
class JobsWithOtherFeatures:
    """Jobs that need a feature which the node does not claim."""

    features: frozenset[str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.features.issuperset(demand.job.required_features)

    def __str__(self) -> str:
        had = listed(self.features)
        return f"jobs that need any feature but {had}" if self.features else "jobs that need a feature"


@dataclass(frozen=True, slots=True)
class JobsWithOtherLabels:
    """Jobs that ask for a label which the node does not carry."""

    labels: Mapping[str, str]

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        return not self.labels.items() >= demand.job.labels.items()

    def __str__(self) -> str:
        carried = listed(f"{name}={value}" for name, value in self.labels.items())
        return f"jobs that ask for any label but {carried}" if self.labels else "jobs that ask for a label"


@dataclass(frozen=True, slots=True)
class JobsOfMoreMemory:
    """Jobs that need more free GPU memory than there is."""

    free: tuple[tuple[str, int | None], ...]
    """The name and the free memory (MiB; None when unknown) of each usable GPU."""

    def covers(self, demand: Demand) -> bool:
        """Say whether a job is refused."""
        if not demand.memory_mb:
            return False
        enough = sum(
            free is not None and free >= demand.memory_mb and demand.gpu_name in name.lower()
            for name, free in self.free
        )
        return enough < demand.gpu_count

    def __str__(self) -> str:
        freest = sorted((max(free, 0) for _, free in self.free if free is not None), reverse=True)
        if not freest:
            return "jobs that state a need of GPU memory"
        more = [f"on each of {place}: {free}" for place, free in enumerate(freest[1:], start=2) if free]
        besides = f" ({listed(more, in_order=True)})" if more else ""
        return f"jobs that need more than {freest[0]} MiB of GPU memory{besides}"


Scope = (
    EveryJob
    | JobsForOthers
    | PublicJobs
    | JobsOfMoreGpus
    | JobsWithModel
    | JobsWithOtherModels
    | JobsWithOtherFeatures
    | JobsWithOtherLabels
    | JobsOfMoreMemory
)
