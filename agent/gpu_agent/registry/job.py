"""A job's demands and the claim that reserves slots and GPUs for it (§5).

Times are monotonic seconds, memory is MiB.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

MOST_NODES = 256
MOST_GPUS = 256

_CAPABILITY = re.compile(r"(\d{1,3})(?:\.(\d{1,3}))?")
_MIG = re.compile(r"\b(?:mig|partition)\b", re.IGNORECASE)
"""In the names of parts of a GPU: NVIDIA's MIG devices, AMD's partitions."""


class Sharing(StrEnum):
    """How a job uses its GPUs (§5.1)."""

    EXCLUSIVE = "exclusive"
    """Whole GPUs: no other claim holds any of them meanwhile."""
    MEMORY = "memory"
    """GPUs shared with other such claims, as long as their free memory suffices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job states; a demand that is left out is no demand. Raises `ValueError` for a contradiction."""

    job_id: str
    required_models: tuple[str, ...] = ()
    required_features: tuple[str, ...] = ()
    public: bool = False
    gpu_count: int | None = None
    """GPUs on each of its nodes; None for a job that a worker on the node serves."""
    gpu_sharing: str | None = None
    """One of `Sharing`; None means memory where only `min_gpu_memory_mb` is stated, else exclusive."""
    gpu_name: str | None = None
    """Matches a GPU whose name contains it, in upper or lower case."""
    min_gpu_memory_mb: int | None = None
    """Of each GPU: its total memory; with sharing by memory, what must be free."""
    min_compute_capability: str | None = None
    """Such as `8.0`."""
    labels: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """A node must have each label, with one of the values."""
    allowed_nodes: tuple[str, ...] | None = None
    excluded_nodes: tuple[str, ...] = ()
    nodes: int = 1
    """So many different nodes, all or none."""
    affinity_key: str | None = None
    priority: int = 0
    ttl_seconds: float | None = None
    """None for the registry's default."""
    wait_seconds: float = 0.0
    """How long one request may wait in the queue."""

    def __post_init__(self) -> None:
        """Check what no single field shows, and a word that a later version may have stored."""
        if self.gpu_sharing is not None:
            Sharing(self.gpu_sharing)
        problem = contradiction(self.gpu_count, self.gpu_sharing, self.min_gpu_memory_mb)
        if problem is not None:
            raise ValueError(problem)


def contradiction(gpu_count: int | None, gpu_sharing: str | None, memory_mb: int | None) -> str | None:
    """Return why demands for GPUs contradict each other, with the next step; None where they do not."""
    if gpu_sharing == Sharing.MEMORY and not memory_mb:
        return "gpu_sharing `memory` needs min_gpu_memory_mb: state how much memory must be free on each GPU"
    if gpu_sharing == Sharing.EXCLUSIVE and gpu_count is None:
        return "gpu_sharing `exclusive` needs gpu_count: state how many GPUs of each node the job needs"
    return None


class GpuKind(NamedTuple):
    """What distinguishes GPUs for a job."""

    name: str
    """Lower case."""
    memory_mb: int
    """0 where it is unknown."""
    capability: tuple[int, int]
    """(0, 0) where it is unknown."""
    is_mig: bool
    is_single: bool = False
    """Whether it works by itself only, and not together with other GPUs."""


GpuSet = tuple[tuple[GpuKind, int], ...]
"""How many GPUs of each kind, sorted: few nodes differ in it."""


class GpuDemand(NamedTuple):
    """Which GPUs of one node a job needs, as filters and index read it."""

    sharing: Sharing | None
    """None for a slot alone: one usable GPU that no exclusive claim holds."""
    number: int
    name: str
    """Lower case; empty when any GPU will do."""
    memory_mb: int
    """0 when the job states none."""
    capability: tuple[int, int]
    on_several_nodes: bool = False
    """Whether the GPUs of several nodes work together."""

    def fits(self, kind: GpuKind) -> bool:
        """Whether a GPU of a kind can serve; a name without MIG matches no MIG device."""
        return (
            self.name in kind.name
            and kind.memory_mb >= (self.memory_mb or (1 if self.sharing is Sharing.EXCLUSIVE else 0))
            and kind.capability >= self.capability
            and not (kind.is_mig and self.name and not names_mig(self.name))
            and not (kind.is_single and (self.number > 1 or self.on_several_nodes))
        )

    def missing(self, gpus: GpuSet) -> int:
        """Return how many more are needed besides these."""
        return max(0, self.number - self.fitting(gpus))

    def fitting(self, gpus: GpuSet) -> int:
        """Return how many of these can serve together: whole GPUs or MIG devices, never both."""
        whole = mig = 0
        for kind, number in gpus:
            if self.fits(kind):
                if kind.is_mig:
                    mig += number
                else:
                    whole += number
        return max(whole, mig)


class Demand(NamedTuple):
    """A job's demands as filters and index read them; made once per query."""

    job: Job
    gpus: GpuDemand
    allowed: frozenset[str] | None
    excluded: frozenset[str]
    labels: tuple[tuple[tuple[str, str], ...], ...]
    """For each label that the job names, the pairs of which a node must have one."""

    @classmethod
    def of(cls, job: Job) -> "Demand":
        """Read a job."""
        return cls(
            job,
            gpu_demand(job),
            None if job.allowed_nodes is None else frozenset(job.allowed_nodes),
            frozenset(job.excluded_nodes),
            tuple(
                [tuple([(name, value) for value in _values(values)]) for name, values in job.labels.items()]
            ),
        )

    @property
    def sharing(self) -> Sharing | None:
        """How the job uses its GPUs; None for a slot alone."""
        return self.gpus.sharing


def gpu_demand(job: Job) -> GpuDemand:
    """Return which GPUs a job needs, after defaults."""
    return _gpu_demand(
        job.gpu_count,
        job.gpu_sharing,
        job.gpu_name,
        job.min_gpu_memory_mb,
        job.min_compute_capability,
        job.nodes > 1,
    )


def sharing_of(job: Job) -> Sharing | None:
    """Return how a job uses its GPUs, after defaults (§5.1)."""
    return gpu_demand(job).sharing


@lru_cache(maxsize=4096)
def _gpu_demand(  # noqa: PLR0917 - positional, so that the cache needs no dictionary
    gpu_count: int | None,
    gpu_sharing: str | None,
    name: str | None,
    memory_mb: int | None,
    lowest: str | None,
    on_several_nodes: bool,  # noqa: FBT001
) -> GpuDemand:
    """Jobs ask for few different GPUs; reading one costs as much as a tenth of a `select`."""
    if gpu_sharing is not None:
        sharing: Sharing | None = Sharing(gpu_sharing)
    elif gpu_count is not None:
        sharing = Sharing.EXCLUSIVE
    else:
        sharing = Sharing.MEMORY if memory_mb else None
    return GpuDemand(
        sharing,
        1 if gpu_count is None else gpu_count,
        (name or "").lower(),
        (memory_mb or 0) if sharing is not None else 0,
        parse_capability(lowest) or (0, 0),
        on_several_nodes and sharing is not None,
    )


@lru_cache(maxsize=8192)
def meets(gpus: GpuSet, demand: GpuDemand) -> bool:
    """Whether these GPUs are enough; remembered, as a fleet has few different sets."""
    return demand.missing(gpus) == 0


def demands_of(job: Job) -> dict[str, object]:
    """Return what makes two requests of one job the same: demands after defaults, lists as sets (§5.3)."""
    stated = {
        one.name: _comparable(getattr(job, one.name)) for one in fields(job) if one.name not in _NO_DEMANDS
    }
    gpus = gpu_demand(job)
    stated["gpu_sharing"] = gpus.sharing and gpus.sharing.value
    stated["gpu_count"] = None if gpus.sharing is None else gpus.number
    stated["min_gpu_memory_mb"] = gpus.memory_mb
    stated["gpu_name"] = gpus.name
    stated["min_compute_capability"] = gpus.capability
    stated["labels"] = frozenset((name, frozenset(_values(value))) for name, value in job.labels.items())
    return stated


def parse_capability(text: str | None) -> tuple[int, int] | None:
    """Read a compute capability such as `8.0`; None where it is none."""
    found = None if text is None else _CAPABILITY.fullmatch(text.strip())
    return None if found is None else (int(found[1]), int(found[2] or 0))


def names_mig(name: str) -> bool:
    """Whether a GPU's name, or a demand for one, is about a MIG device."""
    return _MIG.search(name) is not None


class Grant(NamedTuple):
    """What a claim reserves on one node: a slot, and GPUs where the job asks for them."""

    node_id: str
    hostname: str | None = None
    endpoint: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    """A GPU declared without a UUID is `#<position>`."""
    gpu_indices: tuple[int, ...] = ()
    """The driver's, or at schema 1.0 the positions in the declared list."""
    gpu_parents: tuple[str, ...] = ()
    """Of MIG devices: the parent of each, which a restart may find without them. Empty for whole GPUs."""
    gpu_list: str = ""
    """Of a node without UUIDs: which list of GPUs the positions belong to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Slots and GPUs reserved for one job, on one node or on several."""

    claim_id: str
    job: Job
    owner: str | None
    """Who made it; None with auth off."""
    grants: tuple[Grant, ...]
    granted_at: float
    expires_at: float
    ttl_seconds: float

    @property
    def job_id(self) -> str:
        """The job that it is for."""
        return self.job.job_id

    @property
    def size_bytes(self) -> int:
        """What it and its record take at most, roughly."""
        gpus = sum(len(grant.gpu_uuids) for grant in self.grants)
        return size_of(self.job) + 1024 * len(self.grants) + 512 * gpus

    def on(self, node_id: str) -> Grant | None:
        """Return what it reserves on a node."""
        for grant in self.grants:
            if grant.node_id == node_id:
                return grant
        return None


class ClaimEnd(StrEnum):
    """How a claim ended."""

    RELEASED = "released"
    EXPIRED = "expired"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldGrant:
    """What an ended claim still holds on one node, since its job may run there (§5.3)."""

    claim: Claim
    node_id: str
    gpu_uuids: tuple[str, ...]
    """Those that are not proven free yet."""
    end: ClaimEnd
    ended_at: float
    silent_seconds: float = 0.0
    """Connected time after the end in which the node reported neither jobs nor processes."""

    @property
    def key(self) -> str:
        """Under which it is stored."""
        return f"{self.claim.claim_id}/{self.node_id}"


LARGEST_JOB_BYTES = 384 * 1024
LARGEST_CLAIM_BYTES = 496 * 1024
"""With what the claim reserves; the rest of its document, of 512 KiB at most (§4), are its own few fields."""

_NAME_BYTES = 64


def size_of(job: Job) -> int:
    """Return what the names in a job take, roughly: as text in the store, and as objects in memory."""
    lists = (job.required_models, job.required_features, job.allowed_nodes or (), job.excluded_nodes)
    if not (any(lists) or job.labels):  # as most often
        return 0
    return _size_of(chain(*lists, job.labels, *map(_values, job.labels.values())))


def size_of_grants(grants: Iterable[Grant]) -> int:
    """Return what the names in grants take, roughly, as `size_of` does."""
    return sum(
        _size_of((one.node_id, one.hostname or "", one.endpoint or "", *one.gpu_uuids, *one.gpu_parents))
        for one in grants
    )


def _size_of(names: Iterable[str]) -> int:
    return sum(_NAME_BYTES + len(name) * (1 if name.isascii() else _LONGEST_ESCAPE) for name in names)


_LONGEST_ESCAPE = 12
"""A character outside ASCII takes so many bytes at most in the JSON text that a store writes."""

_NO_DEMANDS = frozenset({"job_id", "priority", "wait_seconds", "ttl_seconds", "affinity_key"})


def _values(value: str | Collection[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _comparable(value: object) -> object:
    return frozenset(value) if isinstance(value, tuple) else value
