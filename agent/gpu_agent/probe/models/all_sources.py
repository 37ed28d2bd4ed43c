"""The model sources that a machine is searched with: name, setting, class and default places, a row each.

A class is imported once one of its places exists. Places are written as the documentation shows them: `$NAME`
at the beginning is a variable, `~` the user's home; one that is not set, or has no home, is left out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from gpu_agent.probe.models.source import SourceFactory
from gpu_agent.records import dataclass


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source, before it is imported."""

    setting: str
    """The agent's setting that names other places."""
    load: Callable[[], SourceFactory]
    places: tuple[str, ...] = ()
    """Where it searches unless the setting says so."""

    @property
    def places_in_words(self) -> str:
        """The default places, as the documentation shows them."""
        return ", ".join(f"`{place}`" for place in self.places)

    def default_paths(self, environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
        """The default places on this machine, each once."""
        found = (_expanded(place, environ, home) for place in self.places)
        return tuple(dict.fromkeys(path for path in found if path is not None))


def _load_huggingface() -> SourceFactory:
    from gpu_agent.probe.models.huggingface import HubCache  # noqa: PLC0415

    return HubCache


def _load_ollama() -> SourceFactory:
    from gpu_agent.probe.models.ollama import OllamaStore  # noqa: PLC0415

    return OllamaStore


def _load_directory() -> SourceFactory:
    from gpu_agent.probe.models.directory import ModelFolders  # noqa: PLC0415

    return ModelFolders


SOURCES: Mapping[str, SourceRow] = {
    "huggingface": SourceRow(
        "hub_roots",
        _load_huggingface,
        (
            "$HF_HUB_CACHE",
            "$HF_HOME/hub",
            "$XDG_CACHE_HOME/huggingface/hub",
            "~/.cache/huggingface/hub",
        ),
    ),
    "ollama": SourceRow(
        "ollama_roots",
        _load_ollama,
        ("$OLLAMA_MODELS", "~/.ollama/models", "/usr/share/ollama/.ollama/models"),
    ),
    "directory": SourceRow("model_directories", _load_directory),
}


def _expanded(place: str, environ: Mapping[str, str], home: Path | None) -> Path | None:
    """Read a variable, then `~`: systemd and images pass it on as it is written."""
    if place.startswith("$"):
        name, _, rest = place.removeprefix("$").partition("/")
        if not environ.get(name):
            return None
        path = Path(environ[name], rest)
        return home / str(path)[2:] if home is not None and str(path).startswith("~/") else path
    if place.startswith("~/"):
        return None if home is None else home / place[2:]
    return Path(place)
