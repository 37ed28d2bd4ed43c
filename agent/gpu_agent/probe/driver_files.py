"""What the NVIDIA driver has put on this machine: its library, its kernel module, its device nodes.

Read from files alone, for whoever must say why NVML does not answer. It loads no library and opens
no GPU, which could wake or hang one; the control node alone is opened, since a device cgroup shows
itself no other way.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "libnvidia-ml.so.1"
CONTROL = "nvidiactl"

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
class DeviceNode:
    """A file by which programs reach the driver."""

    name: str
    mode: int
    owner: str
    """`user:group`."""
    accessible: bool
    """Whether our user may read and write it, by its permissions."""
    refused: str | None = None
    """Why it could not be opened in spite of that; None also where that was not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFiles:
    """All of it; what is not there is None or empty."""

    library: Path | None
    library_version: str | None
    module_version: str | None
    nodes: tuple[DeviceNode, ...]
    gpu_count: int | None
    """How many GPUs the kernel module has found; None without it."""
    wsl: bool
    """WSL reaches the driver by /dev/dxg, and has no nodes of NVIDIA's."""


def look(environ: Mapping[str, str], *, root: Path = Path("/")) -> DriverFiles:
    """Look now; `root` is where `usr`, `proc` and `dev` are found."""
    library = next((path for path in _libraries(environ, root) if path.exists()), None)
    gpus = root / "proc/driver/nvidia/gpus"
    return DriverFiles(
        library=library,
        library_version=None if library is None else _version_of(library),
        module_version=_module_version(root),
        nodes=tuple(_nodes(root / "dev")),
        gpu_count=len(os.listdir(gpus)) if gpus.is_dir() else None,  # noqa: PTH208 - only how many there are
        wsl=(root / "dev/dxg").exists(),
    )


def owner_of(path: Path) -> str:
    """Name a file's user and group, as `user:group`."""
    try:
        return f"{path.owner()}:{path.group()}"
    except KeyError:  # of another system's users, as in a container
        found = path.stat()
        return f"{found.st_uid}:{found.st_gid}"
    except (OSError, NotImplementedError):
        return "unknown"


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


def _nodes(folder: Path) -> Iterator[DeviceNode]:
    try:
        names = sorted(path.name for path in folder.iterdir() if _NODE.fullmatch(path.name))
    except OSError:
        return
    for name in names:
        path = folder / name
        try:
            found = path.stat()
        except OSError:  # gone since
            continue
        accessible = os.access(path, os.R_OK | os.W_OK)
        yield DeviceNode(
            name=name,
            mode=found.st_mode & 0o777,
            owner=owner_of(path),
            accessible=accessible,
            refused=_refusal(path) if accessible and name == CONTROL else None,
        )


def _refusal(path: Path) -> str | None:
    try:
        os.close(os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)))
    except OSError as error:
        return "a device cgroup forbids it" if error.errno == errno.EPERM else (error.strerror or str(error))
    return None
