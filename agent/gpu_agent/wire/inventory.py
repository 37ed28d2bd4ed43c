"""The inventory: what one machine was found to have.

Plain frozen dataclasses, so that the probe and its child can fill them without
loading pydantic. Unknown is `None` with a reason beside it, never 0.

Sizes are MiB (`_mb`) or bytes (`_bytes`), temperatures °C, power W, times seconds.
"""

from collections.abc import Mapping
from enum import StrEnum

from gpu_agent.records import dataclass, field


class Health(StrEnum):
    """Whether one GPU may be used: `ok` and `degraded` are usable, the others not."""

    OK = "ok"
    DEGRADED = "degraded"
    LOST = "lost"
    UNKNOWN = "unknown"

    @property
    def usable(self) -> bool:
        """True when a job may be placed on a GPU in this state."""
        return self in (Health.OK, Health.DEGRADED)


class Outcome(StrEnum):
    """The three outcomes of looking for GPUs, never mixed up."""

    OK = "ok"
    NO_DRIVER = "no_driver"
    DRIVER_BROKEN = "driver_broken"


class MemoryKind(StrEnum):
    """Whose memory a GPU's figures describe."""

    DEDICATED = "dedicated"
    UNIFIED = "unified"
    UNKNOWN = "unknown"


class ModelStatus(StrEnum):
    """Whether a model can serve."""

    READY = "ready"
    DOWNLOADING = "downloading"
    NOT_INSTALLED = "not_installed"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReason:
    """Why a GPU is not `ok`: a code for programs, a sentence and a next step for people."""

    code: str
    detail: str
    action: str | None = None
    since: float | None = None
    """Unix time at which the reason was first seen."""


def usable_in_words(usable: int, gpus: int) -> str:
    """Say how many of a machine's GPUs are usable."""
    if gpus == 1:
        return "the GPU is usable" if usable else "the GPU is not usable"
    if usable == gpus:
        return f"all {gpus} GPUs are usable"
    return f"{usable or 'none'} of the {gpus} GPUs {'are' if usable > 1 else 'is'} usable"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """One process that holds a GPU."""

    pid: int
    memory_mb: int | None = None
    ours: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG device of one (`parent_uuid` set), with its last reading."""

    # `probe.nvml.readings` says how to add a reading.

    uuid: str
    name: str
    index: int | None = None
    vendor: str = "nvidia"
    memory_mb: int | None = None
    memory_used_mb: int | None = None
    memory_free_mb: int | None = None
    memory_reserved_mb: int | None = None
    """What the driver keeps for itself, beside what is used and free."""
    memory_kind: MemoryKind = MemoryKind.UNKNOWN
    compute_capability: str | None = None
    pci_bus_id: str | None = None
    utilization_percent: float | None = None
    memory_utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    energy_mj: int | None = None
    """Energy used since the driver was loaded, in millijoules: where it falls, the GPU was reset."""
    ecc_uncorrected: int | None = None
    retirement_pending: bool | None = None
    remapped_rows_correctable: int | None = None
    """Rows of its memory that were replaced by spare ones after corrected errors, ever since it was made."""
    remapped_rows_uncorrectable: int | None = None
    """The same after uncorrected errors."""
    row_remap_failed: bool | None = None
    """Whether a row could not be replaced."""
    recovery_action: str | None = None
    """What the driver itself asks for: `none`, or the code of the reason that it is."""
    sram_threshold_exceeded: bool | None = None
    """Whether errors of its SRAM exceed the limit of NVIDIA's field diagnostic."""
    throttle_reasons: tuple[str, ...] | None = None
    compute_mode: str | None = None
    """`prohibited` where no program may use it."""
    fabric_faults: tuple[str, ...] | None = None
    """What is wrong with its place in the NVSwitch fabric: codes of reasons; empty where all is well."""
    nvlinks_up: int | None = None
    nvlinks_down: int | None = None
    """Links that are not up; a GPU without a bridge has some by nature."""
    nvlink_errors: int | None = None
    """Replays and recoveries since the driver was loaded."""
    pcie_generation: int | None = None
    """Of the link now: without load it falls to a lower one."""
    pcie_generation_max: int | None = None
    """The most that the card and its slot allow together."""
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_replays: int | None = None
    """Packets that the PCIe link had to repeat since the driver was loaded."""
    mig_enabled: bool | None = None
    parent_uuid: str | None = None
    gpu_instance: int | None = None
    """Of a MIG device: the number of its GPU instance."""
    processes: tuple[GpuProcess, ...] | None = None
    asleep: bool | None = None
    """True when it sleeps, to save power, and was not asked."""
    visible: bool | None = None
    """Whether `CUDA_VISIBLE_DEVICES` shows it to programs; None where it is not set or names no such GPU."""
    offered: bool = True
    """False: listed for the machine's owner alone, such as a processor's own graphics; never declared."""
    health: Health = Health.OK
    reasons: tuple[HealthReason, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    """Event of the driver, such as `xid_79` → how often it came since the last reading."""
    unknowns: Mapping[str, str] = field(default_factory=dict)
    """Field name → why it could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One reading of all GPUs, whatever its outcome."""

    outcome: Outcome
    detail: str | None = None
    """A sentence with the next step when the outcome is not `ok`."""
    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    took_ms: float = 0.0
    age_seconds: float = 0.0
    """How old the reading was when it was handed over: above zero for an answer that came late."""

    @property
    def offered(self) -> tuple[Gpu, ...]:
        """The GPUs that are declared to a registry."""
        return tuple(gpu for gpu in self.gpus if gpu.offered)

    @property
    def checked(self) -> tuple[Gpu, ...]:
        """The GPUs that admission checks are made for: offered, and a MIG device is checked with its GPU."""
        return tuple(gpu for gpu in self.offered if gpu.parent_uuid is None)

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """The GPUs that a job may use: offered, healthy enough, and not the parent of MIG devices."""
        parents = {gpu.parent_uuid for gpu in self.gpus if gpu.parent_uuid}
        return tuple(gpu for gpu in self.offered if gpu.health.usable and gpu.uuid not in parents)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheDisk:
    """Free space on the file system that holds a model cache."""

    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine around the GPUs, as its cgroup may use it; `machine_*` as it is in whole."""

    cpu_logical_cores: int
    cpu_physical_cores: int | None
    memory_total_mb: int | None
    memory_used_mb: int | None
    memory_available_mb: int | None
    platform: str
    machine_logical_cores: int | None = None
    machine_memory_total_mb: int | None = None
    cpu_percent: float | None = None
    load_1m: float | None = None
    boot_id: str | None = None
    kernel: str | None = None
    os: str | None = None
    hostname: str | None = None
    virtualization: str | None = None
    cache_disks: tuple[CacheDisk, ...] = ()
    unknowns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model in a cache or declared by the owner. Paths never leave the machine."""

    model_id: str
    version: str
    kind: str = "other"
    src_lang: str | None = None
    tgt_lang: str | None = None
    dialect: str | None = None
    enabled: bool = True
    status: ModelStatus = ModelStatus.READY
    source: str | None = None
    revision: str | None = None
    size_bytes: int | None = None
    format: str | None = None
    detail: str | None = None
    """Why the status is not `ready`; stays on the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All that one probe found: the single source of `probe`, registration and heartbeats."""

    host: Host
    gpu: GpuReport
    models: tuple[Model, ...] = ()
    models_complete: bool = True
    """False: the search ran out of its time; what it did not reach is missing, or as it was last known."""
    models_unsearched: Mapping[str, str] = field(default_factory=dict)
    """Place → why it could not be searched for models. For this machine's owner; never for the wire."""
    features_supported: Mapping[str, bool] = field(default_factory=dict)
    advanced_features: tuple[str, ...] = ()
    simulated: bool = False
    took_ms: float = 0.0


# ---- features (node protocol §3.1): stated by the owner, or proven by a model

BASE_FEATURES: tuple[str, ...] = (
    "emotion_detection",
    "voice_style_detection",
    "speech_rate_detection",
    "speech_rate_control",
    "speaker_identification",
    "persona_adaptation",
)
"""The features of §3.1 that `advanced_features` never decides (A-6)."""

PROVEN_BY_KIND: Mapping[str, str] = {"emotion": "emotion_detection"}
"""A ready model of this kind proves that base feature, unless the node declares it false."""
