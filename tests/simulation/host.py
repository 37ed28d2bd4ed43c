"""A machine: GPUs that can be lost, a driver that can hang, models that can break, jobs that run.

What its probe would find is built again only when something has changed: the same world a thousand times
over must be cheap.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from random import Random

from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.declaration import Declaration, Owner, declare
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    Host,
    Inventory,
    MemoryKind,
    Model,
    ModelStatus,
    Outcome,
)

MODELS = ("asr", "nmt", "tts")
ZONES = ("a", "b")
SIZES_MB = (24_576, 81_920)
OWN_USE_MB = 1_024
HANG_SHOWS_SECONDS = 60.0
"""So long a driver's silence is covered by its last reading."""

_BUSY, _IDLE = 99.0, 5.0
_LOST = HealthReason(code="gpu_lost", detail="it fell off the bus")
_HUNG = HealthReason(code="nvml_hung", detail="the driver does not answer")


@dataclass(frozen=True, slots=True)
class Run:
    """A job that runs: on which GPUs, and what it takes on each."""

    gpu_uuids: tuple[str, ...]
    memory_mb: int


class SimulatedHost:
    """The machine under one agent."""

    def __init__(self, name: str, dice: Random, *, announces_jobs: bool) -> None:
        self.name = name
        self.announces_jobs = announces_jobs
        self.lost: set[int] = set()
        self.broken: set[str] = set()
        self.hung_since: float | None = None
        self.busy = False
        self.jobs: dict[str, Run] = {}
        self.owner = Owner(
            accept_public_jobs=dice.random() < 2 / 3,
            labels={"zone": dice.choice(ZONES)},
            max_concurrent_jobs=dice.choice((None, 1, 2, 3)),
            endpoint=f"http://{name}:9000",
        )
        self._sizes = [dice.choice(SIZES_MB) for _ in range(dice.choice((1, 1, 2, 4)))]
        self._models = tuple(model for model in MODELS if dice.random() < 4 / 5) or MODELS[:1]
        self.reports_processes = dice.random() < 2 / 3
        self.copied: str | None = None
        """The UUID of another machine's GPU, which its first GPU declares as its own."""
        self._found: tuple[object, Inventory, Declaration] | None = None

    @property
    def well(self) -> bool:
        """True while nothing is wrong with it."""
        return not (self.lost or self.broken or self.busy or self.copied) and self.hung_since is None

    @property
    def models(self) -> tuple[str, ...]:
        """What is installed."""
        return self._models

    @property
    def running_ids(self) -> tuple[str, ...] | None:
        """The jobs in flight, where workers announce them."""
        return tuple(self.jobs) if self.announces_jobs else None

    def clone(self, name: str) -> "SimulatedHost":
        """Copy it; the copy has GPUs of its own."""
        twin = copy(self)
        twin.name, twin.lost, twin.broken, twin.jobs = name, set(), set(), {}
        twin.hung_since, twin.busy, twin.copied, twin._found = None, False, None, None
        return twin

    def may_work(self, thresholds: Thresholds) -> bool:
        """Say whether it can become ready, with all that is installed."""
        models = set(self._models)
        return models.issuperset(thresholds.required_models) and len(models) >= thresholds.min_ready_models

    def gpu_count(self) -> int:
        """How many GPUs were put in."""
        return len(self._sizes)

    def fix(self) -> None:
        """Put everything right."""
        self.lost.clear()
        self.broken.clear()
        self.hung_since, self.busy, self.copied = None, False, None

    def probe(self, now: float) -> tuple[Inventory, Declaration]:
        """Read the machine; the same objects again where nothing has changed."""
        hangs = self.hung_since is not None and now - self.hung_since > HANG_SHOWS_SECONDS
        used = self._used_mb()
        processes = self._processes()
        state = (
            frozenset(self.lost),
            frozenset(self.broken),
            hangs,
            self.busy,
            tuple(used),
            tuple(processes),
            self.copied,
            self.owner,
        )
        if self._found is None or self._found[0] != state:
            inventory = self._inventory(used, processes, hangs=hangs)
            self._found = (state, inventory, declare(inventory, self.owner))
        return self._found[1], self._found[2]

    def probe_age_seconds(self, now: float) -> float:
        """Age of the last good reading."""
        return 0.5 if self.hung_since is None else round(now - self.hung_since + 0.5, 3)

    def uuid(self, place: int) -> str:
        """Name a GPU."""
        if place == 0 and self.copied is not None:
            return self.copied
        return f"GPU-{self.name}-{place}"

    def _used_mb(self) -> list[int]:
        used = dict.fromkeys((self.uuid(place) for place in range(len(self._sizes))), OWN_USE_MB)
        for run in self.jobs.values():
            for uuid in run.gpu_uuids:
                if uuid in used:
                    used[uuid] += run.memory_mb
        return list(used.values())

    def _processes(self) -> list[int]:
        """Count the processes on each GPU: one of each job; the worker for slots alone is on the first."""
        counts = dict.fromkeys((self.uuid(place) for place in range(len(self._sizes))), 0)
        for run in self.jobs.values():
            for uuid in run.gpu_uuids or (self.uuid(0),):
                if uuid in counts:
                    counts[uuid] += 1
        return list(counts.values())

    def _inventory(self, used: list[int], processes: list[int], *, hangs: bool) -> Inventory:
        gpus = tuple(
            self._gpu(place, used[place], processes[place], hangs=hangs) for place in range(len(self._sizes))
        )
        host = Host(
            cpu_logical_cores=32,
            cpu_physical_cores=16,
            memory_total_mb=262_144,
            memory_used_mb=26_214,
            memory_available_mb=235_930,
            platform="linux",
            cpu_percent=_BUSY if self.busy else _IDLE,
        )
        models = tuple(
            Model(
                model_id=model,
                version="1",
                kind=model,
                status=ModelStatus.ERROR if model in self.broken else ModelStatus.READY,
            )
            for model in self._models
        )
        features: Mapping[str, bool] = {"emotion_detection": len(self._models) > 1}
        return Inventory(
            host=host,
            gpu=GpuReport(outcome=Outcome.OK, gpus=gpus),
            models=models,
            features_supported=features,
            simulated=False,
        )

    def _gpu(self, place: int, used: int, processes: int, *, hangs: bool) -> Gpu:
        lost = place in self.lost
        shown = tuple(GpuProcess(pid=1000 * place + one) for one in range(processes))
        return Gpu(
            uuid=self.uuid(place),
            name="NVIDIA H100 80GB HBM3" if self._sizes[place] > SIZES_MB[0] else "NVIDIA L4",
            index=place,
            memory_mb=self._sizes[place],
            memory_used_mb=None if hangs or lost else used,
            memory_kind=MemoryKind.DEDICATED,
            processes=shown if self.reports_processes and not (hangs or lost) else None,
            utilization_percent=None if hangs or lost else _IDLE,
            health=Health.LOST if lost else Health.UNKNOWN if hangs else Health.OK,
            reasons=(_LOST,) if lost else (_HUNG,) if hangs else (),
        )


# What a played machine keeps on its disk.


@dataclass(slots=True)
class SimulatedStateDir:
    """What an agent keeps on its disk."""

    node_id: str | None = None
    node_token: str | None = None
    join_token: str | None = None
