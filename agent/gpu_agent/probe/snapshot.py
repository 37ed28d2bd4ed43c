"""One look at the whole machine: the inventory that probe, registration and beats share.

`take` composes it from a reading of the GPUs (real or simulated), the host, the catalogue of models
and the feature policy; `to_document` is its JSON form, `gpu-agent.probe/1`; `exit_code` says whether
this machine could register. It refuses to read the GPUs itself: they are read elsewhere, with a
deadline, and their reading is handed in.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum

from gpu_agent.probe import features
from gpu_agent.probe.features import FeaturePolicy
from gpu_agent.probe.host import HostProbe
from gpu_agent.probe.models.catalogue import DEFAULT_BUDGET_SECONDS, Catalogue
from gpu_agent.probe.models.shelf import Shelf
from gpu_agent.wire.inventory import Gpu, GpuReport, Inventory, Outcome

SCHEMA = "gpu-agent.probe/1"

COULD_REGISTER, NO_GPU, DRIVER_BROKEN = 0, 2, 3
"""Exit codes of `gpu-agent probe`."""

_GPU_LEAD = ("index", "uuid", "name", "memory_mb", "health")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What `take` reads besides the GPUs. Keep one per process: host and catalogue remember."""

    host: HostProbe = field(default_factory=HostProbe)
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(()))
    policy: FeaturePolicy = field(default_factory=FeaturePolicy)
    scan_budget_seconds: float = DEFAULT_BUDGET_SECONDS


def take(
    gpu: GpuReport,
    sources: Sources,
    *,
    simulated: bool = False,
    answers_within_seconds: float = 0.0,
    follow: Callable[[Shelf], None] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Inventory:
    """Read host and models now, beside the GPUs read already; the rest is for the catalogue's scan.

    Blocks for that scan's budget, and its patience with disks that do not answer.
    """
    began = monotonic()
    host = sources.host.read()
    scan = sources.catalogue.scan(
        sources.scan_budget_seconds, answers_within_seconds=answers_within_seconds, follow=follow
    )
    roomless = {f"cache_disks:{name}": why for name, why in scan.roomless.items()}
    return Inventory(
        host=replace(host, cache_disks=scan.disks, unknowns={**host.unknowns, **roomless}),
        gpu=gpu,
        models=scan.models,
        models_complete=scan.complete,
        models_unsearched=scan.problems,
        features_supported=features.supported(sources.policy, scan.models),
        advanced_features=features.advanced(sources.policy),
        simulated=simulated,
        took_ms=round(gpu.took_ms + (monotonic() - began) * 1000, 1),
    )


def exit_code(inventory: Inventory) -> int:
    """0: could register (R-01); 2: no driver or no GPU; 3: the driver is broken, or no GPU can serve."""
    gpu = inventory.gpu
    if gpu.outcome is Outcome.DRIVER_BROKEN:
        return DRIVER_BROKEN
    if gpu.outcome is Outcome.NO_DRIVER or not gpu.gpus:
        return NO_GPU
    return COULD_REGISTER if able_to_serve(gpu) else DRIVER_BROKEN


def able_to_serve(report: GpuReport) -> tuple[Gpu, ...]:
    """The usable GPUs of known memory: the ones that make a registration (R-01) and take jobs."""
    return tuple(gpu for gpu in report.usable if gpu.memory_mb)


def to_document(inventory: Inventory) -> dict[str, object]:
    """The inventory as `gpu-agent probe --json` prints it: unknown is null, the order of keys is fixed."""
    gpu = inventory.gpu
    return {
        "schema": SCHEMA,
        "outcome": gpu.outcome.value,
        "detail": gpu.detail,
        "could_register": exit_code(inventory) == COULD_REGISTER,
        "simulated": inventory.simulated,
        "host": _plain(inventory.host),
        "gpus": [_gpu(each) for each in gpu.gpus],
        "models": _plain(inventory.models),
        "models_complete": inventory.models_complete,
        "models_unsearched": _plain(inventory.models_unsearched),
        "features_supported": _plain(inventory.features_supported),
        "advanced_features": _plain(inventory.advanced_features),
        "driver_version": gpu.driver_version,
        "cuda_version": gpu.cuda_version,
        "took_ms": inventory.took_ms,
    }


def _gpu(gpu: Gpu) -> dict[str, object]:
    """One GPU, with what tells it apart in front."""
    names = dict.fromkeys((*_GPU_LEAD, *(part.name for part in fields(gpu))))
    return {name: _plain(getattr(gpu, name)) for name in names}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
