"""What an owner may tell the probe, and the sources that follow from it.

One object for `gpu-agent probe` and the agent, so that they look in the same places. It reads no
file and no environment: those are handed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.probe.collectors import Surroundings
from gpu_agent.probe.features import FeaturePolicy
from gpu_agent.probe.models.awaited import Awaited
from gpu_agent.probe.models.catalogue import DEFAULT_BUDGET_SECONDS, Catalogue, Patience
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.places import hub_places, ollama_places
from gpu_agent.probe.snapshot import Sources


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
    patience: Patience = field(default_factory=Patience)
    """With disks that do not answer."""
    collectors: tuple[str, ...] | None = None
    """Which collectors join NVML, by name; `None` means all that are installed."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What collectors are told."""


def sources_of(
    options: ProbeOptions,
    *,
    environ: Mapping[str, str],
    home: Path | None,
    kept: Catalogue | None = None,
) -> Sources:
    """Open the sources; keep them for the life of the process, since they remember.

    Places that the catalogue before had too go on in this one, with what is known of them.
    """
    hub_roots, ollama_roots = options.hub_roots, options.ollama_roots
    if hub_roots is None:
        hub_roots = hub_places(environ, home)
    if ollama_roots is None:
        ollama_roots = ollama_places(environ, home)
    kinds = (
        ("huggingface", "huggingface:HubCache", hub_roots),
        ("ollama", "ollama:OllamaStore", ollama_roots),
        ("directory", "directory:ModelFolders", options.model_directories),
    )
    found = [
        Awaited(name, kind, (root,), cross_file_systems=options.cross_file_systems)
        for name, kind, roots in kinds
        for root in dict.fromkeys(roots)
    ]
    shelves = () if kept is None else kept.shelves
    return Sources(
        catalogue=Catalogue(found, options.declared_models, kept=shelves, patience=options.patience),
        policy=options.features,
        scan_budget_seconds=options.scan_budget_seconds,
    )
