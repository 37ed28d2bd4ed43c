"""A hint at what the machine runs in: a container, a virtual machine, or bare metal.

The words are those of `systemd-detect-virt` (`docker`, `podman`, `wsl`, `kvm`, `vmware`, …, `none`),
the innermost layer first. It is a hint for people, read from a handful of files: nothing decides by
it. `none` is returned only where the processor shows it.
"""

from pathlib import Path

_CONTAINER_MARKS = (
    (".dockerenv", "docker"),
    ("run/.containerenv", "podman"),
    ("var/run/secrets/kubernetes.io", "kubernetes"),
)
_CONTAINER_NAMES = ("run/systemd/container", "run/host/container-manager")
_GROUPS = "proc/self/cgroup"
_GROUP_MARKS = (
    ("kubepods", "kubernetes"),
    ("libpod", "podman"),
    ("/docker/", "docker"),
    ("docker-", "docker"),
    ("/lxc/", "lxc"),
    ("lxc.payload", "lxc"),
)
"""What runtimes write into the name of a container's control group, where that can be seen."""
_KERNEL = "proc/sys/kernel/osrelease"
_VENDOR_FILES = ("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name", "sys/hypervisor/type")
_VENDORS = (
    ("amazon ec2", "amazon"),
    ("google", "google"),
    ("microsoft corporation virtual", "microsoft"),
    ("vmware", "vmware"),
    ("virtualbox", "oracle"),
    ("innotek", "oracle"),
    ("xen", "xen"),
    ("parallels", "parallels"),
    ("openstack", "kvm"),
    ("kvm", "kvm"),
    ("qemu", "qemu"),
)
_PROCESSORS = "proc/cpuinfo"
_FIRST_PROCESSOR_CHARS = 16_384


def detect(root: Path = Path("/")) -> str | None:
    """Name the innermost layer, `none` for bare metal, `None` when nothing shows it. Linux only."""
    for mark, name in _CONTAINER_MARKS:
        if _exists(root / mark):
            return name
    container = _container(root)
    if container:
        return container
    if "microsoft" in _text(root / _KERNEL).lower():
        return "wsl"
    return _machine(root)


def _container(root: Path) -> str | None:
    for name in _CONTAINER_NAMES:
        manager = _text(root / name).strip()
        if manager:
            return manager
    groups = [line.split(":", 2)[-1] for line in _text(root / _GROUPS).splitlines()]
    return next((name for mark, name in _GROUP_MARKS if any(mark in group for group in groups)), None)


def _machine(root: Path) -> str | None:
    vendor = " ".join(_text(root / name).strip().lower() for name in _VENDOR_FILES)
    flags = _flags(_text(root / _PROCESSORS))
    if flags is not None and "hypervisor" not in flags:
        return "none"  # EC2's and Google's bare metal carry the vendor's name too
    for words, name in _VENDORS:
        if words in vendor:
            return name
    return "vm-other" if flags is not None else None


def _flags(processors: str) -> frozenset[str] | None:
    """The first x86 processor's flags; other processors have none."""
    for line in processors.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(_FIRST_PROCESSOR_CHARS)
    except OSError:
        return ""
