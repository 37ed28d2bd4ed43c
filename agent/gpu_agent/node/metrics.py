"""The agent's own metrics for Prometheus: one table of names, labels and meanings, and its text format.

They are written from the readings that the agent has anyway; no second client opens the driver. What DCGM
exports too has DCGM's names, labels and units, for every vendor; the rest is `gpu_agent_*`. A figure that is
unknown, or older than its reading should be, has no series: a driver that hangs makes them absent while
`gpu_agent_gpu_reading_age_seconds` grows, and a GPU that is lost keeps its health and its reasons.

To add a metric: add a row, and run `make reference`, which writes docs/reference/metrics.md. The values of
every label are bounded by what the machine has.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from gpu_agent.node.snapshot import CONNECTED, Snapshot
from gpu_agent.records import dataclass
from gpu_agent.version import __version__
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, ModelStatus, Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GPU_LABELS = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname")
"""As dcgm-exporter writes them; a MIG device has `GPU_I_PROFILE`, `GPU_I_ID` and `parent_UUID` besides."""

_PROFILE = re.compile(r"\bMIG (\S+)")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_XID = "xid_"

Labels = tuple[tuple[str, str], ...]
Series = Iterable[tuple[Labels, float | None]]
"""Each series of a metric: its labels, and its value; None where it is unknown."""


class GpuEvents:
    """Counts the driver's events since the agent started: each reading has those that came since the last."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        """By UUID and event."""
        self.last_xids: dict[str, int] = {}
        """By UUID."""
        self._counted: dict[str, Mapping[str, int]] = {}

    def count(self, report: GpuReport) -> None:
        """Count the events of a reading, and none twice: without a new one the last is reported again."""
        for gpu in report.gpus:
            if self._counted.get(gpu.uuid) is gpu.events:
                continue
            self._counted[gpu.uuid] = gpu.events
            for event, times in gpu.events.items():
                self.counts[gpu.uuid, event] += times
                if event.startswith(_XID):
                    self.last_xids[gpu.uuid] = int(event.removeprefix(_XID))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one exposition is written from."""

    snapshot: Snapshot
    events: GpuEvents
    reading_ages: Mapping[str, float]
    """By vendor: the seconds since its GPUs were last read."""
    fresh_seconds: float
    """An older reading has missed the next one: its figures are not exposed."""
    jobs_in_flight: int | None
    """None where no worker announces jobs."""
    hostname: str
    now: float
    """Monotonic seconds."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs that are known, in order."""
        inventory = self.snapshot.inventory
        return () if inventory is None else inventory.gpu.gpus

    @property
    def fresh_gpus(self) -> Iterator[Gpu]:
        """The GPUs whose figures are current."""
        for gpu in self.gpus:
            age = self.reading_ages.get(gpu.vendor)
            if age is not None and age <= self.fresh_seconds:
                yield gpu

    def labels(self, gpu: Gpu) -> Labels:
        """The labels of a GPU's series."""
        index = "" if gpu.index is None else str(gpu.index)
        values = (index, gpu.uuid, gpu.pci_bus_id or "", f"{gpu.vendor}{index}", gpu.name, self.hostname)
        labels = tuple(zip(GPU_LABELS, values, strict=True))
        if gpu.parent_uuid is None:
            return labels
        profile = _PROFILE.search(gpu.name)
        return (
            *labels,
            ("GPU_I_PROFILE", profile[1] if profile else ""),
            ("GPU_I_ID", "" if gpu.gpu_instance is None else str(gpu.gpu_instance)),
            ("parent_UUID", gpu.parent_uuid),
        )


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    read: Callable[[View], Series]
    labels: tuple[str, ...] = ()


def exposition(view: View) -> str:
    """Write all metrics that have a series, in Prometheus' text format."""
    lines: list[str] = []
    for metric in METRICS:
        name, read = metric.name, metric.read(view)
        series = [_line(name, labels, value) for labels, value in read if value is not None]
        if series:
            lines += (f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}", *series)
    return "\n".join((*lines, ""))


def _line(name: str, labels: Labels, value: float) -> str:
    written = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels)
    return f"{name}{{{written}}} {float(value)!r}" if written else f"{name} {float(value)!r}"


def _figure(read: Callable[[Gpu], float | None]) -> Callable[[View], Series]:
    """Read one figure of every GPU whose figures are current."""
    return lambda view: ((view.labels(gpu), read(gpu)) for gpu in view.fresh_gpus)


def _of_gpu(name: str, meaning: str, read: Callable[[Gpu], float | None], *, counts: bool = False) -> Metric:
    return Metric(name, "counter" if counts else "gauge", meaning, _figure(read), GPU_LABELS)


def _foreign_processes(gpu: Gpu) -> int | None:
    """Count the processes of nobody that the agent knows; None where it cannot say of each."""
    owned = None if gpu.processes is None else [one.ours for one in gpu.processes]
    return None if owned is None or None in owned else owned.count(False)


def _last_xids(view: View) -> Series:
    for gpu in view.fresh_gpus:
        known = gpu.vendor == "nvidia" and gpu.parent_uuid is None and "events" not in gpu.unknowns
        yield view.labels(gpu), view.events.last_xids.get(gpu.uuid, 0) if known else None


def _events(view: View) -> Series:
    by_uuid = {gpu.uuid: gpu for gpu in view.gpus}
    for (uuid, event), times in view.events.counts.items():
        if uuid in by_uuid:
            yield (*view.labels(by_uuid[uuid]), ("event", event)), times


def _health(view: View) -> Series:
    for gpu in view.gpus:
        labels = view.labels(gpu)
        yield from (((*labels, ("health", one)), gpu.health is one) for one in Health)


def _reasons(view: View) -> Series:
    for gpu in view.gpus:
        labels = view.labels(gpu)
        yield from (((*labels, ("reason", one.code)), 1) for one in gpu.reasons)


def _throttle(view: View) -> Series:
    for gpu in view.fresh_gpus:
        labels = view.labels(gpu)
        yield from (((*labels, ("reason", one)), 1) for one in gpu.throttle_reasons or ())


def _driver(view: View) -> Series:
    inventory = view.snapshot.inventory
    if inventory is not None:
        yield from (((("outcome", one),), inventory.gpu.outcome is one) for one in Outcome)


def _reading_ages(view: View) -> Series:
    return (((("vendor", vendor),), age) for vendor, age in view.reading_ages.items())


def _models(view: View) -> Series:
    inventory = view.snapshot.inventory
    if inventory is not None:
        found = Counter(model.status for model in inventory.models)
        yield from (((("status", one),), found[one]) for one in ModelStatus)


def _node_status(view: View) -> Series:
    session = view.snapshot.session
    if session.registry_status is not None and session.state in CONNECTED:
        status = session.registry_status.status
        yield from (((("status", one),), status == one) for one in NodeStatus)


def _checks(view: View) -> Series:
    return (((("check", one.name), ("scope", one.scope)), one.ok) for one in view.snapshot.checks)


def _registry_jobs(view: View) -> float | None:
    session = view.snapshot.session
    if session.registry_status is None or session.state not in CONNECTED:
        return None
    details = session.registry_status.details
    return None if details is None else details.in_flight_jobs


def _one(read: Callable[[View], float | None]) -> Callable[[View], Series]:
    return lambda view: (((), read(view)),)


def _heartbeat_age(view: View) -> float | None:
    sent_at = view.snapshot.last_heartbeat_at
    return None if sent_at is None else max(0.0, view.now - sent_at)


METRICS = (
    _of_gpu("DCGM_FI_DEV_GPU_UTIL", "Use of the GPU, in percent.", lambda gpu: gpu.utilization_percent),
    _of_gpu(
        "DCGM_FI_DEV_MEM_COPY_UTIL",
        "Use of the memory's bandwidth, in percent.",
        lambda gpu: gpu.memory_utilization_percent,
    ),
    _of_gpu("DCGM_FI_DEV_FB_TOTAL", "Memory of the GPU, in MiB.", lambda gpu: gpu.memory_mb),
    _of_gpu("DCGM_FI_DEV_FB_USED", "Memory in use, in MiB.", lambda gpu: gpu.memory_used_mb),
    _of_gpu("DCGM_FI_DEV_FB_FREE", "Free memory, in MiB.", lambda gpu: gpu.memory_free_mb),
    _of_gpu(
        "DCGM_FI_DEV_FB_RESERVED",
        "Memory that the driver keeps for itself, in MiB.",
        lambda gpu: gpu.memory_reserved_mb,
    ),
    _of_gpu("DCGM_FI_DEV_GPU_TEMP", "Temperature of the GPU, in °C.", lambda gpu: gpu.temperature_c),
    _of_gpu("DCGM_FI_DEV_POWER_USAGE", "Power draw, in W.", lambda gpu: gpu.power_w),
    _of_gpu("DCGM_FI_DEV_POWER_MGMT_LIMIT", "Power limit, in W.", lambda gpu: gpu.power_limit_w),
    _of_gpu("DCGM_FI_DEV_SM_CLOCK", "Clock of the multiprocessors, in MHz.", lambda gpu: gpu.clock_sm_mhz),
    _of_gpu("DCGM_FI_DEV_MEM_CLOCK", "Clock of the memory, in MHz.", lambda gpu: gpu.clock_memory_mhz),
    _of_gpu(
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy used since the driver was loaded, in mJ.",
        lambda gpu: gpu.energy_mj,
        counts=True,
    ),
    Metric(
        "DCGM_FI_DEV_XID_ERRORS",
        "gauge",
        "Number of the last Xid error since the agent started; 0 while there was none.",
        _last_xids,
        GPU_LABELS,
    ),
    _of_gpu(
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "Uncorrected ECC errors since the driver was loaded.",
        lambda gpu: gpu.ecc_uncorrected,
        counts=True,
    ),
    _of_gpu(
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "Rows of the memory that were replaced after corrected errors, ever since it was made.",
        lambda gpu: gpu.remapped_rows_correctable,
        counts=True,
    ),
    _of_gpu(
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "Rows of the memory that were replaced after uncorrected errors, ever since it was made.",
        lambda gpu: gpu.remapped_rows_uncorrectable,
        counts=True,
    ),
    _of_gpu(
        "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        "1 where a row of the memory could not be replaced.",
        lambda gpu: gpu.row_remap_failed,
    ),
    _of_gpu(
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        "Packets that the PCIe link had to repeat since the driver was loaded.",
        lambda gpu: gpu.pcie_replays,
        counts=True,
    ),
    _of_gpu(
        "DCGM_FI_DEV_PCIE_LINK_GEN",
        "Generation of the PCIe link now; it falls without load.",
        lambda gpu: gpu.pcie_generation,
    ),
    _of_gpu("DCGM_FI_DEV_PCIE_LINK_WIDTH", "Lanes of the PCIe link now.", lambda gpu: gpu.pcie_width),
    Metric(
        "gpu_agent_gpu_health",
        "gauge",
        "1 for the health that a GPU has now; a lost one stays listed.",
        _health,
        (*GPU_LABELS, "health"),
    ),
    Metric(
        "gpu_agent_gpu_health_reason",
        "gauge",
        "1 for each reason why a GPU is not ok; absent once it has cleared.",
        _reasons,
        (*GPU_LABELS, "reason"),
    ),
    Metric(
        "gpu_agent_gpu_throttle",
        "gauge",
        "1 for each reason why a GPU's clocks are held down now.",
        _throttle,
        (*GPU_LABELS, "reason"),
    ),
    _of_gpu(
        "gpu_agent_gpu_processes",
        "Processes that hold the GPU.",
        lambda gpu: None if gpu.processes is None else len(gpu.processes),
    ),
    _of_gpu(
        "gpu_agent_gpu_foreign_processes",
        "Those of them that belong to no announced job and run no program of the owner's; absent where that "
        "is not known of each.",
        _foreign_processes,
    ),
    Metric(
        "gpu_agent_gpu_events_total",
        "counter",
        "Events that the driver reported since the agent started.",
        _events,
        (*GPU_LABELS, "event"),
    ),
    Metric(
        "gpu_agent_gpu_reading_age_seconds",
        "gauge",
        "Time since the GPUs of a vendor were last read; it grows while the driver hangs.",
        _reading_ages,
        ("vendor",),
    ),
    Metric(
        "gpu_agent_driver",
        "gauge",
        "1 for what the last probe found: GPUs (`ok`), no driver, or one that does not answer properly.",
        _driver,
        ("outcome",),
    ),
    Metric("gpu_agent_models", "gauge", "Models that were found, by status.", _models, ("status",)),
    Metric(
        "gpu_agent_jobs_in_flight",
        "gauge",
        "Jobs that workers of this machine have announced; absent where none announces any.",
        _one(lambda view: view.jobs_in_flight),
    ),
    Metric(
        "gpu_agent_registry_jobs",
        "gauge",
        "Jobs that the registry counts on this node, claims among them, by its last status; absent without a "
        "connection.",
        _one(_registry_jobs),
    ),
    Metric(
        "gpu_agent_check_ok",
        "gauge",
        "1 while an admission check of this machine passes, 0 while it fails.",
        _checks,
        ("check", "scope"),
    ),
    Metric(
        "gpu_agent_connected",
        "gauge",
        "1 while the registry receives this node's heartbeats.",
        _one(lambda view: view.snapshot.session.state in CONNECTED),
    ),
    Metric(
        "gpu_agent_node_status",
        "gauge",
        "1 for the status that the registry gave this node last; absent without a connection.",
        _node_status,
        ("status",),
    ),
    Metric(
        "gpu_agent_last_heartbeat_age_seconds",
        "gauge",
        "Time since the last heartbeat was sent.",
        _one(_heartbeat_age),
    ),
    Metric(
        "gpu_agent_state_ok",
        "gauge",
        "1 while the state directory holds this node's identity and can take another one.",
        _one(lambda view: view.snapshot.state_problem is None),
    ),
    Metric(
        "gpu_agent_settings_ok",
        "gauge",
        "1 while the settings of the file are the ones in force; 0 after a reload that failed or has to "
        "wait for a restart.",
        _one(lambda view: view.snapshot.settings_problem is None),
    ),
    Metric(
        "gpu_agent_simulated",
        "gauge",
        "1 where the GPUs are simulated, for demos and tests.",
        _one(lambda view: None if view.snapshot.inventory is None else view.snapshot.inventory.simulated),
    ),
    Metric(
        "gpu_agent_build_info",
        "gauge",
        "What runs.",
        lambda _: (((("version", __version__),), 1),),
        ("version",),
    ),
)
"""Every metric of the agent, in the order of the exposition."""
