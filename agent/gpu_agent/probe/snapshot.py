"""One snapshot of the whole machine: the inventory that probe, registration and heartbeats share.

`open_sources` follows from what the operator configured (`ProbeOptions`); `take` reads host and models beside
a reading of the GPUs, which is handed in because it has a deadline of its own; `to_document` is the JSON
form, `gpu-agent.probe/1`; `exit_code` says whether this machine could register. Features come from the
configuration, plus what ready models prove.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path

from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.scanner import DEFAULT_BUDGET_SECONDS, DiskPatience, ModelScanner, SourceState
from gpu_agent.probe.models.source import LazySource
from gpu_agent.wire.codes import BASE_FEATURES, PROVEN_BY_KIND
from gpu_agent.wire.inventory import Gpu, GpuReport, Inventory, Model, ModelStatus, Outcome

# The features that this machine claims.
#
# They come from the configuration, plus what its models prove: an enabled, ready `emotion` model is
# emotion detection. It refuses to claim more than the configuration allows: a feature set to false
# there stays false whatever the models prove, and no base feature comes from the advanced ones.


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePolicy:
    """What the configuration says about features."""

    stated: Mapping[str, bool] = field(default_factory=dict)
    """True claims a feature, false forbids it; what is not named is left to the models."""
    advanced: tuple[str, ...] = ()


def supported_features(policy: FeaturePolicy, models: Iterable[Model]) -> dict[str, bool]:
    """`features_supported`: every base feature and every stated one, true or false."""
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


# One look at the whole machine: the inventory that probe, registration and beats share.
#
# `take` composes it from a reading of the GPUs (real or simulated), the host, the catalogue of models
# and the feature policy; `to_document` is its JSON form, `gpu-agent.probe/1`; `exit_code` says whether
# this machine could register. It refuses to read the GPUs itself: they are read elsewhere, with a
# deadline, and their reading is handed in.


SCHEMA = "gpu-agent.probe/1"

COULD_REGISTER, NO_GPU, DRIVER_BROKEN = 0, 2, 3
"""Exit codes of `gpu-agent probe`."""

_GPU_LEAD = ("index", "uuid", "name", "memory_mb", "health")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What `take` reads besides the GPUs. Keep one per process: host and catalogue remember."""

    host: HostProbe = field(default_factory=HostProbe)
    catalogue: ModelScanner = field(default_factory=lambda: ModelScanner(()))
    policy: FeaturePolicy = field(default_factory=FeaturePolicy)
    scan_budget_seconds: float = DEFAULT_BUDGET_SECONDS


def take(
    gpu: GpuReport,
    sources: Sources,
    *,
    simulated: bool = False,
    answers_within_seconds: float = 0.0,
    follow: Callable[[SourceState], None] | None = None,
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
        features_supported=supported_features(sources.policy, scan.models),
        advanced_features=advanced_features(sources.policy),
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


# What an owner may tell the probe, and the sources that follow from it.
#
# One object for `gpu-agent probe` and the agent, so that they look in the same places. It reads no
# file and no environment: those are handed in.


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """The probe's part of the agent's settings."""

    hub_roots: tuple[Path, ...] | None = None
    """Hugging Face hub caches; `None` means the places where the hub's own library keeps one."""
    ollama_roots: tuple[Path, ...] | None = None
    """Ollama's model folders; `None` means the places where Ollama keeps one."""
    model_directories: tuple[Path, ...] = ()
    cross_file_systems: bool = False
    """Whether what is mounted below one of those places is searched too."""
    declared_models: tuple[Declaration, ...] = ()
    features: FeaturePolicy = field(default_factory=FeaturePolicy)
    scan_budget_seconds: float = DEFAULT_BUDGET_SECONDS
    patience: DiskPatience = field(default_factory=DiskPatience)
    """With disks that do not answer."""
    collectors: tuple[str, ...] | None = None
    """Which collectors join NVML, by name; `None` means all that are installed."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What collectors are told."""


def open_sources(
    options: ProbeOptions,
    *,
    environ: Mapping[str, str],
    home: Path | None,
    kept: ModelScanner | None = None,
) -> Sources:
    """Open the sources; keep them for the life of the process, since they remember.

    Places that the catalogue before had too go on in this one, with what is known of them.
    """
    hub_roots, ollama_roots = options.hub_roots, options.ollama_roots
    if hub_roots is None:
        hub_roots = default_hub_paths(environ, home)
    if ollama_roots is None:
        ollama_roots = default_ollama_paths(environ, home)
    kinds = (
        ("huggingface", "huggingface:HubCache", hub_roots),
        ("ollama", "ollama:OllamaStore", ollama_roots),
        ("directory", "directory:ModelFolders", options.model_directories),
    )
    found = [
        LazySource(name, kind, (root,), cross_file_systems=options.cross_file_systems)
        for name, kind, roots in kinds
        for root in dict.fromkeys(roots)
    ]
    shelves = () if kept is None else kept.shelves
    return Sources(
        catalogue=ModelScanner(found, options.declared_models, kept=shelves, patience=options.patience),
        policy=options.features,
        scan_budget_seconds=options.scan_budget_seconds,
    )


# Where models are by custom, for each program that keeps some. It looks at no disk.


def default_hub_paths(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where hub caches are: what the environment names, read as the library does, and the usual one."""
    places = []
    if environ.get("HF_HUB_CACHE"):
        places.append(_expand_home(environ["HF_HUB_CACHE"], home))
    if environ.get("HF_HOME"):
        places.append(_expand_home(environ["HF_HOME"], home) / "hub")
    if environ.get("XDG_CACHE_HOME"):
        places.append(_expand_home(environ["XDG_CACHE_HOME"], home) / "huggingface" / "hub")
    if home is not None:
        places.append(home / ".cache" / "huggingface" / "hub")
    return tuple(dict.fromkeys(places))


def default_ollama_paths(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where Ollama keeps models: where the environment says, the user's place, the service's."""
    places = [Path(environ["OLLAMA_MODELS"])] if environ.get("OLLAMA_MODELS") else []
    if home is not None:
        places.append(home / ".ollama" / "models")
    places.append(Path("/usr/share/ollama/.ollama/models"))
    return tuple(dict.fromkeys(places))


def _expand_home(place: str, home: Path | None) -> Path:
    """Read `~` as the home: systemd and images hand it over as it is written."""
    return home / place[2:] if home is not None and place.startswith("~/") else Path(place)
