"""What the NVIDIA driver has put on this machine: its library, its kernel module, its device nodes.

Read from files alone, to say why NVML does not answer. No library is loaded and no device opened, which could
wake a GPU or hang: `device_nodes` opens devices, once the driver has refused.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpu_agent.records import dataclass

LIBRARY = "libnvidia-ml.so.1"

_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
    "run/opengl-driver/lib",
)
"""Where distributions, container runtimes and WSL put it, beside what `LD_LIBRARY_PATH` names."""
_VERSION_OF_FILE = re.compile(r"\.so\.(\d+(?:\.\d+)+)$")
_VERSION_OF_MODULE = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)")
_NODE = re.compile(r"nvidia(ctl|-uvm|\d+)")
_MOST_CHARS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFiles:
    """All of it; what is not there is None or empty."""

    nvml_library: Path | None
    nvml_library_version: str | None
    module_version: str | None
    nodes: tuple[str, ...]
    """The names of its files in /dev."""
    wsl: bool
    """WSL reaches the driver by /dev/dxg, and has no nodes of NVIDIA's."""


def find_driver_files(environ: Mapping[str, str], *, root: Path = Path("/")) -> DriverFiles:
    """Look now; `root` is where `usr`, `proc` and `dev` are found."""
    library = next((path for path in _libraries(environ, root) if path.exists()), None)
    return DriverFiles(
        nvml_library=library,
        nvml_library_version=None if library is None else _version_of(library),
        module_version=_module_version(root),
        nodes=_nodes(root / "dev"),
        wsl=(root / "dev/dxg").exists(),
    )


def _libraries(environ: Mapping[str, str], root: Path) -> Iterator[Path]:
    for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if folder:
            yield Path(folder) / LIBRARY
    for folder in _FOLDERS:
        yield root / folder / LIBRARY


def _version_of(library: Path) -> str | None:
    found = _VERSION_OF_FILE.search(library.resolve().name)
    return found[1] if found else None


def _module_version(root: Path) -> str | None:
    try:
        with (root / "proc/driver/nvidia/version").open(errors="replace") as file:
            text = file.read(_MOST_CHARS)
    except OSError:
        return None
    found = _VERSION_OF_MODULE.search(text)
    return found[1] if found else "of unknown version"


def _nodes(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if _NODE.fullmatch(path.name)))
    except OSError:
        return ()
