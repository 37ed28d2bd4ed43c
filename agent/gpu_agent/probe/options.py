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
from gpu_agent.probe.models.catalogue import DEFAULT_BUDGET_SECONDS, Catalogue
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
    collectors: tuple[str, ...] | None = None
    """Which collectors join NVML, by name; `None` means all that are installed."""
    surroundings: Surroundings = field(default_factory=Surroundings)
    """What collectors are told."""


def sources_of(options: ProbeOptions, *, environ: Mapping[str, str], home: Path | None) -> Sources:
    """Open the sources; keep them for the life of the process, since they remember."""
    hub_roots, ollama_roots = options.hub_roots, options.ollama_roots
    if hub_roots is None:
        hub_roots = hub_places(environ, home)
    if ollama_roots is None:
        ollama_roots = ollama_places(environ, home)
    folders, crossing = options.model_directories, options.cross_file_systems
    found = (
        Awaited("huggingface", "huggingface:HubCache", hub_roots, cross_file_systems=crossing),
        Awaited("ollama", "ollama:OllamaStore", ollama_roots, cross_file_systems=crossing),
        Awaited("directory", "directory:ModelFolders", folders, cross_file_systems=crossing),
    )
    return Sources(
        catalogue=Catalogue(found, options.declared_models),
        policy=options.features,
        cache_roots=(*hub_roots, *ollama_roots, *options.model_directories),
        scan_budget_seconds=options.scan_budget_seconds,
    )
