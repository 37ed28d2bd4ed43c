"""The files in /dev by which programs reach NVIDIA GPUs: which are missing or closed, and the fix.

Two refusals look alike and have different fixes: a file's mode keeps a user out, and a control group keeps a
container or a unit out whatever the mode says. A node that exists is opened and closed again; nothing is
changed. Use this only once the driver has refused: opening a device can wake a GPU.
"""

import errno
import os
import stat
import sys
from collections.abc import Iterable

from gpu_agent.probe import pci

if sys.platform != "win32":
    import grp
    import pwd

_MODULE = ("proc/driver/nvidia/version", "sys/module/nvidia")
"""Either may be hidden from a unit or a container."""
_GPUS = "proc/driver/nvidia/gpus"
_MINOR = "device minor"
_CONTAINER_MARKS = (
    ".dockerenv",
    "run/.containerenv",
    "run/systemd/container",
    "var/run/secrets/kubernetes.io",
)
_NOT_ON_PCI = ("dev/dxg", "etc/nv_tegra_release")
_FILE_CHARS = 4096
_MOST_GPUS = 64


def is_module_loaded(root: str = "/") -> bool:
    """Whether the kernel has the nvidia module, as far as this process may see it."""
    return any(os.path.exists(os.path.join(root, sign)) for sign in _MODULE)  # noqa: PTH110, PTH118 - pathlib weighs


def has_no_gpu(root: str = "/") -> bool:
    """Whether the PCI bus can be listed and has no NVIDIA GPU; those of WSL2 and of Tegra are not on it."""
    if any(os.path.exists(os.path.join(root, sign)) for sign in _NOT_ON_PCI):  # noqa: PTH110, PTH118
        return False
    bus = os.path.join(root, "sys/bus/pci/devices")  # noqa: PTH118
    try:
        devices = os.listdir(bus)  # noqa: PTH208 - names are enough
    except OSError:
        return False
    return not any(pci.is_gpu(f"{bus}/{device}", pci.NVIDIA) for device in devices)


def node_problems(root: str = "/") -> list[str]:
    """Say of each device node that is missing or closed what it is, whose, and the next step."""
    inside = any(os.path.exists(os.path.join(root, mark)) for mark in _CONTAINER_MARKS)  # noqa: PTH110, PTH118
    missing: list[str] = []
    closed: list[str] = []
    for name in ("nvidiactl", *_gpu_nodes(root), "nvidia-uvm"):
        path = os.path.join(root, "dev", name)  # noqa: PTH118
        shown = f"/dev/{name}"
        try:
            status = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            missing.append(shown)
            continue
        except OSError as unseen:
            closed.append(f"{shown} cannot be looked at ({unseen.strerror})")
            continue
        error = _refusal(path)
        if error is not None:
            closed.append(closed_sentence(shown, status, error))
    return [*([missing_sentence(missing, in_container=inside)] if missing else []), *closed]


def missing_sentence(nodes: Iterable[str], *, in_container: bool) -> str:
    """Say that nodes are not there, and who makes them."""
    names = list(nodes)
    are = f"{_listed(names)} {'is' if len(names) == 1 else 'are'} missing"
    if in_container:
        return (
            f"{are}: start the container with its GPUs (`--gpus all`, or a CDI device) and the `utility` "
            "driver capability"
        )
    return (
        f"{are}: `nvidia-modprobe -c 0 -u` makes them; a systemd unit must not have PrivateDevices=yes and "
        f"needs DeviceAllow={names[0]} rw"
    )


def closed_sentence(node: str, status: os.stat_result, error: OSError) -> str:
    """Say why a node that is there cannot be opened: `status` is its own, `error` the kernel's."""
    group = _group(status.st_gid)
    what = f"{node} ({stat.filemode(status.st_mode)} {_user(status.st_uid)}:{group})"
    if error.errno == errno.EACCES:
        for_group = status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP
        fix = (
            f"add the agent's user to the group {group}"
            if for_group
            else "set NVreg_DeviceFileMode=0666 for the nvidia module, or give the agent's user access to it"
        )
        return f"{what} may not be opened by the agent's user: {fix}"
    if error.errno == errno.EPERM:
        return (
            f"{what} is closed to the agent's control group: restart the container, which loses its GPUs at "
            "`systemctl daemon-reload` unless they are named as devices (`--device`, or CDI); a systemd unit "
            f"needs DeviceAllow={node} rw"
        )
    return f"{what} does not open ({error.strerror}): see `dmesg` for NVRM messages"


def _gpu_nodes(root: str) -> list[str]:
    """Name the node of each GPU that the kernel module lists."""
    folder = os.path.join(root, _GPUS)  # noqa: PTH118
    try:
        listed = sorted(os.listdir(folder))[:_MOST_GPUS]  # noqa: PTH208
    except OSError:
        return []
    found = (_minor(os.path.join(folder, one, "information")) for one in listed)  # noqa: PTH118
    return [f"nvidia{minor}" for minor in found if minor is not None]


def _minor(path: str) -> int | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            lines = file.read(_FILE_CHARS).splitlines()
    except OSError:
        return None
    minors = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(_MINOR)]
    return int(minors[0]) if minors and minors[0].isdecimal() and len(minors[0]) <= len("999") else None


def _refusal(path: str) -> OSError | None:
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        opened = os.open(path, flags)
    except OSError as error:
        return error
    os.close(opened)
    return None


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, NameError):
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except (KeyError, NameError):
        return str(number)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
