"""One snapshot of the whole machine: the inventory that probe, registration and heartbeats share.

`open_sources` makes from the operator's `ProbeOptions` what there is to read; `take` reads host and models,
beside a reading of the GPUs that is handed in because it has a deadline of its own; `to_document` is the JSON
form, `gpu-agent.probe/1`; `exit_code` says whether this machine could register.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path

from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.models.all_sources import SOURCES
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.scanner import DEFAULT_BUDGET_SECONDS, DiskPatience, ModelScanner
from gpu_agent.probe.models.source import LazySource
from gpu_agent.probe.models.source_state import SourceState
from gpu_agent.records import dataclass, field, field_names, is_record, replace
from gpu_agent.wire.inventory import (
    BASE_FEATURES,
    PROVEN_BY_KIND,
    Gpu,
    GpuReport,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)

SCHEMA = "gpu-agent.probe/1"

COULD_REGISTER, NO_GPU, DRIVER_BROKEN = 0, 2, 3
"""Exit codes of `gpu-agent probe`."""

_FIRST_FIELDS = ("index", "uuid", "name", "memory_mb", "health")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePolicy:
    """What the configuration says about features."""

    stated: Mapping[str, bool] = field(default_factory=dict)
    """True claims a feature, false forbids it; any other feature depends on the models."""
    advanced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """The probe's part of the agent's settings; `gpu-agent probe` and the agent share it."""

    model_paths: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Source → where it searches; one without an entry has the default paths of `models.all_sources`."""
    cross_file_systems: bool = False
    """Whether file systems that are mounted below one of those paths are searched too."""
    declared_models: tuple[ModelDeclaration, ...] = ()
    features: FeaturePolicy = field(default_factory=FeaturePolicy)
    scan_budget_seconds: float = DEFAULT_BUDGET_SECONDS
    patience: DiskPatience = field(default_factory=DiskPatience)
    """With disks that do not answer."""
    collectors: tuple[str, ...] | None = None
    """Which collectors run beside NVML, by name; `None` means all that are installed."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What collectors are made with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What `take` reads besides the GPUs. Keep one per process: host and scanner remember."""

    host: HostProbe = field(default_factory=HostProbe)
    scanner: ModelScanner = field(default_factory=lambda: ModelScanner(()))
    policy: FeaturePolicy = field(default_factory=FeaturePolicy)
    scan_budget_seconds: float = DEFAULT_BUDGET_SECONDS


def open_sources(
    options: ProbeOptions,
    *,
    environ: Mapping[str, str],
    home: Path | None,
    previous: ModelScanner | None = None,
) -> Sources:
    """Open what the options name; nothing is read yet. Keep the result for the life of the process.

    The sources that the `previous` scanner has too go on in the new one, with all that is known of them.
    """
    sources = [
        LazySource(name, row.load, (root,), cross_file_systems=options.cross_file_systems)
        for name, row in SOURCES.items()
        for root in dict.fromkeys(options.model_paths.get(name, row.default_paths(environ, home)))
    ]
    states = () if previous is None else previous.states
    return Sources(
        scanner=ModelScanner(sources, options.declared_models, previous=states, patience=options.patience),
        policy=options.features,
        scan_budget_seconds=options.scan_budget_seconds,
    )


def take(
    gpu: GpuReport,
    sources: Sources,
    *,
    simulated: bool = False,
    answers_within_seconds: float = 0.0,
    after_read: Callable[[SourceState], None] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Inventory:
    """Read host and models now, and join them with the reading of the GPUs.

    Blocks for the scan's budget, and for its patience with disks that do not answer; `answers_within_seconds`
    and `after_read` are the scan's.
    """
    began = monotonic()
    host = sources.host.read()
    scan = sources.scanner.scan(
        sources.scan_budget_seconds, answers_within_seconds=answers_within_seconds, after_read=after_read
    )
    disk_unknowns = {f"cache_disks:{as_unicode(name)}": why for name, why in scan.disk_unknowns.items()}
    disks = tuple(replace(disk, path=as_unicode(disk.path)) for disk in scan.disks)
    return Inventory(
        host=replace(host, cache_disks=disks, unknowns={**host.unknowns, **disk_unknowns}),
        gpu=gpu,
        models=scan.models,
        models_complete=scan.complete,
        models_unsearched={as_unicode(place): why for place, why in scan.problems.items()},
        features_supported=supported_features(sources.policy, scan.models),
        advanced_features=advanced_features(sources.policy),
        simulated=simulated,
        took_ms=round(gpu.took_ms + (monotonic() - began) * 1000, 1),
    )


def as_unicode(path: str) -> str:
    """A path as any JSON reader takes it: each byte that is no UTF-8 becomes a question mark."""
    return path.encode(errors="replace").decode()


def exit_code(inventory: Inventory) -> int:
    """0: could register (R-01); 2: no driver or no GPU; 3: the driver is broken, or no GPU can serve."""
    gpu = inventory.gpu
    if gpu.outcome is Outcome.DRIVER_BROKEN:
        return DRIVER_BROKEN
    if gpu.outcome is Outcome.NO_DRIVER or not gpu.offered:
        return NO_GPU
    return COULD_REGISTER if able_to_serve(gpu) else DRIVER_BROKEN


def able_to_serve(report: GpuReport) -> tuple[Gpu, ...]:
    """The usable GPUs of known memory: the ones that make a registration (R-01) and take jobs."""
    return tuple(gpu for gpu in report.usable if gpu.memory_mb)


def document_fields(inventory: Inventory) -> dict[str, object]:
    """The fields of the probe's document in their order, with the inventory's own dataclasses as values."""
    gpu = inventory.gpu
    return {
        "schema": SCHEMA,
        "outcome": gpu.outcome,
        "detail": gpu.detail,
        "could_register": exit_code(inventory) == COULD_REGISTER,
        "simulated": inventory.simulated,
        "host": inventory.host,
        "gpus": gpu.gpus,
        "models": inventory.models,
        "models_complete": inventory.models_complete,
        "models_unsearched": inventory.models_unsearched,
        "features_supported": inventory.features_supported,
        "advanced_features": inventory.advanced_features,
        "driver_version": gpu.driver_version,
        "cuda_version": gpu.cuda_version,
        "took_ms": inventory.took_ms,
    }


def to_document(inventory: Inventory) -> dict[str, object]:
    """The inventory as `gpu-agent probe --json` prints it: unknown is null, the order of keys is fixed."""
    plain = {name: _plain(value) for name, value in document_fields(inventory).items()}
    return {**plain, "gpus": [_gpu(each) for each in inventory.gpu.gpus]}


def _gpu(gpu: Gpu) -> dict[str, object]:
    """One GPU, its identity first."""
    names = dict.fromkeys((*_FIRST_FIELDS, *field_names(gpu)))
    return {name: _plain(getattr(gpu, name)) for name in names}


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _plain(value: object) -> object:
    if type(value) in _SCALARS:  # most values: every other question takes longer
        return value
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Enum):
        return value.value
    if is_record(value):
        return {name: _plain(getattr(value, name)) for name in field_names(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value


# ---- features: stated in the configuration, or proven by a model


def supported_features(policy: FeaturePolicy, models: Iterable[Model]) -> dict[str, bool]:
    """`features_supported`: every base feature and every stated one, true or false.

    An enabled, ready `emotion` model proves emotion detection, unless the configuration sets it to false.
    """
    proven = {
        PROVEN_BY_KIND[model.kind]
        for model in models
        if model.kind in PROVEN_BY_KIND and model.enabled and model.status is ModelStatus.READY
    }
    names = dict.fromkeys((*BASE_FEATURES, *sorted(policy.stated)))
    return {name: policy.stated.get(name, name in proven) for name in names}


def advanced_features(policy: FeaturePolicy) -> tuple[str, ...]:
    """`advanced_features`: the stated ones that are no base features, each once, in the stated order."""
    return tuple(name for name in dict.fromkeys(policy.advanced) if name not in BASE_FEATURES)
