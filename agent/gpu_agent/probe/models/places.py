"""Where models are by custom, for each program that keeps some. It looks at no disk."""

from collections.abc import Mapping
from pathlib import Path


def hub_places(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where hub caches are: what the environment names, read as the library does, and the usual one."""
    places = []
    if environ.get("HF_HUB_CACHE"):
        places.append(_at_home(environ["HF_HUB_CACHE"], home))
    if environ.get("HF_HOME"):
        places.append(_at_home(environ["HF_HOME"], home) / "hub")
    if environ.get("XDG_CACHE_HOME"):
        places.append(_at_home(environ["XDG_CACHE_HOME"], home) / "huggingface" / "hub")
    if home is not None:
        places.append(home / ".cache" / "huggingface" / "hub")
    return tuple(dict.fromkeys(places))


def ollama_places(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where Ollama keeps models: where the environment says, the user's place, the service's."""
    places = [Path(environ["OLLAMA_MODELS"])] if environ.get("OLLAMA_MODELS") else []
    if home is not None:
        places.append(home / ".ollama" / "models")
    places.append(Path("/usr/share/ollama/.ollama/models"))
    return tuple(dict.fromkeys(places))


def _at_home(place: str, home: Path | None) -> Path:
    """Read `~` as the home: systemd and images hand it over as it is written."""
    return home / place[2:] if home is not None and place.startswith("~/") else Path(place)
