"""Where models are by custom, for each program that keeps some. It looks at no disk."""

from collections.abc import Mapping
from pathlib import Path


def hub_places(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """Where hub caches are: each place that the environment names, and the usual one."""
    places = []
    if environ.get("HF_HUB_CACHE"):
        places.append(Path(environ["HF_HUB_CACHE"]))
    if environ.get("HF_HOME"):
        places.append(Path(environ["HF_HOME"]) / "hub")
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
