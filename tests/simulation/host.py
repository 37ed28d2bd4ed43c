"""A machine: GPUs that can be lost, a driver that can hang, models that can break, jobs that run.

What its probe would find is built again only when something has changed: the same world a thousand times
over must be cheap.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from random import Random

from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NODE_SCOPE
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
from gpu_agent.wire.messages import NodeCheck

MODELS = ("asr", "nmt", "tts")
ZONES = ("a", "b")
SIZES_MB = (24_576, 81_920)
OWN_USE_MB = 1_024
HANG_SHOWS_SECONDS = 60.0
"""So long a driver's silence is covered by its last reading."""

_BUSY, _IDLE = 99.0, 5.0
_MIG = "MIG-"
_DEVICES_EACH = 2
_LOST = HealthReason(code="gpu_lost", detail="it fell off the bus")
_HUNG = HealthReason(code="nvml_hung", detail="the driver does not answer")


@dataclass(frozen=True, slots=True)
class Run:
    """A job that runs: on which GPUs, and what it takes on each."""

    gpu_uuids: tuple[str, ...]
    memory_mb: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """A GPU that is declared: a whole one, the parent of MIG devices, or one of these devices."""

    uuid: str
    place: int
    memory_mb: int
    parent_uuid: str | None = None


def parent_of(uuid: str) -> str | None:
    """Return the parent of a MIG device by its UUID, which names it; None for a whole GPU."""
    return uuid.removeprefix(_MIG).rpartition("-")[0] if uuid.startswith(_MIG) else None


class SimulatedHost:
    """The machine under one agent."""

    def __init__(self, name: str, dice: Random, *, announces_jobs: bool) -> None:
        self.name = name
        self.runs_checks = False
        self.checked = False
        """Whether its agent has run its checks since it started."""
        self.failed_checks: set[int | None] = set()
        """The places of the GPUs that fail theirs; None for the hook of the whole machine."""
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
        self.parted: set[int] = set()
        """The places of the GPUs that are parted into MIG devices."""
        self._models = tuple(model for model in MODELS if dice.random() < 4 / 5) or MODELS[:1]
        self.reports_processes = dice.random() < 2 / 3
        self.copied: str | None = None
        """The UUID of another machine's GPU, which its first GPU declares as its own."""
        self._found: tuple[object, Inventory, Declaration] | None = None

    @property
    def well(self) -> bool:
        """True while nothing is wrong with it."""
        trouble = self.lost or self.broken or self.busy or self.copied or self.failed_checks
        return not trouble and self.hung_since is None

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
        twin.parted, twin.failed_checks = set(self.parted), set()
        return twin

    def may_work(self, thresholds: Thresholds) -> bool:
        """Say whether it can become ready, with all that is installed."""
        models = set(self._models)
        return models.issuperset(thresholds.required_models) and len(models) >= thresholds.min_ready_models

    def gpu_count(self) -> int:
        """How many GPUs were put in."""
        return len(self._sizes)

    @property
    def partable(self) -> list[int]:
        """The places of the GPUs that know MIG."""
        return [place for place, size in enumerate(self._sizes) if size > SIZES_MB[0]]

    @property
    def uuids(self) -> list[str]:
        """All that it declares, in order."""
        return [unit.uuid for unit in self._units()]

    def usable_count(self) -> int:
        """How many of them can take jobs: a MIG parent takes none."""
        return len(self.uuids) - len(self.parted)

    def fix(self) -> None:
        """Put everything right."""
        self.lost.clear()
        self.broken.clear()
        self.failed_checks.clear()
        self.hung_since, self.busy, self.copied = None, False, None

    def probe(self, now: float) -> tuple[Inventory, Declaration]:
        """Read the machine; the same objects again where nothing has changed."""
        hangs = self.hung_since is not None and now - self.hung_since > HANG_SHOWS_SECONDS
        units = self._units()
        used = self._used_mb(units)
        processes = self._processes(units)
        state = (
            frozenset(self.lost),
            frozenset(self.broken),
            hangs,
            self.busy,
            tuple(used),
            tuple(processes),
            self.copied,
            frozenset(self.parted),
            self.owner,
            self.checked,
            frozenset(self.failed_checks),
        )
        if self._found is None or self._found[0] != state:
            inventory = self._inventory(units, used, processes, hangs=hangs)
            self._found = (state, inventory, declare(inventory, self.owner, checks=self._checks()))
        return self._found[1], self._found[2]

    def _checks(self) -> tuple[NodeCheck, ...] | None:
        if not self.runs_checks:
            return None
        if not self.checked:
            return ()
        places = range(self.gpu_count())
        return (
            NodeCheck(name="hook", scope=NODE_SCOPE, ok=None not in self.failed_checks, at=0.0),
            *(
                NodeCheck(name="pcie_link", scope=self.uuid(one), ok=one not in self.failed_checks, at=0.0)
                for one in places
            ),
        )

    def probe_age_seconds(self, now: float) -> float:
        """Age of the last good reading."""
        return 0.5 if self.hung_since is None else round(now - self.hung_since + 0.5, 3)

    def uuid(self, place: int) -> str:
        """Name a GPU."""
        if place == 0 and self.copied is not None:
            return self.copied
        return f"GPU-{self.name}-{place}"

    def _units(self) -> list[_Unit]:
        units = []
        for place, size in enumerate(self._sizes):
            uuid = self.uuid(place)
            units.append(_Unit(uuid, place, size))
            units += [
                _Unit(f"{_MIG}{uuid}-{number}", place, size // _DEVICES_EACH, uuid)
                for number in range(_DEVICES_EACH if place in self.parted else 0)
            ]
        return units

    def _used_mb(self, units: Sequence[_Unit]) -> list[int]:
        used = dict.fromkeys((unit.uuid for unit in units), OWN_USE_MB)
        for run in self.jobs.values():
            for uuid in run.gpu_uuids:
                if uuid in used:
                    used[uuid] += run.memory_mb
        return list(used.values())

    def _processes(self, units: Sequence[_Unit]) -> list[int]:
        """Count the processes on each GPU: one of each job; the worker for slots alone is on the first."""
        counts = dict.fromkeys((unit.uuid for unit in units), 0)
        first = units[1 if 0 in self.parted else 0].uuid
        for run in self.jobs.values():
            for uuid in run.gpu_uuids or (first,):
                if uuid in counts:
                    counts[uuid] += 1
        return list(counts.values())

    def _inventory(
        self, units: Sequence[_Unit], used: list[int], processes: list[int], *, hangs: bool
    ) -> Inventory:
        gpus = tuple(
            self._gpu(unit, used[number], processes[number], hangs=hangs) for number, unit in enumerate(units)
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

    def _gpu(self, unit: _Unit, used: int, processes: int, *, hangs: bool) -> Gpu:
        lost = (
            unit.place in self.lost and unit.parent_uuid is None
        )  # a parent's health counts for its devices
        shown = tuple(GpuProcess(pid=1000 * unit.place + one) for one in range(processes))
        whole = "NVIDIA H100 80GB HBM3" if unit.place in self.partable else "NVIDIA L4"
        return Gpu(
            uuid=unit.uuid,
            name=whole if unit.parent_uuid is None else f"{whole} MIG 3g.40gb",
            index=unit.place if unit.parent_uuid is None else None,
            memory_mb=unit.memory_mb,
            parent_uuid=unit.parent_uuid,
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
