"""A GPU's memory as NVML reports it, and the machine's memory where the GPU has none of its own.

The second version of the call reports what the driver reserves apart from what is in use; the first version,
on drivers from 510 on, counts it as used. NOT_SUPPORTED does not mean an old driver: an integrated GPU uses
the machine's memory, and any other GPU's memory is unknown. No size is guessed.
"""

import re
from types import ModuleType

from gpu_agent.probe.nvml.errors import UnknownValueError, Values, first_known

MIB = 1 << 20
ABSURD_BYTES = 4 << 40
"""No GPU has more memory than this; drivers that do not know answer 2^64-1."""

FIELDS = ("memory_mb", "memory_used_mb", "memory_free_mb", "memory_reserved_mb")

_INTEGRATED_NAMES = re.compile(
    r"\b(GB10|Tegra|Jetson|Orin|Xavier|Thor|nvgpu|Grace|GH200|GB200|GB300)\b", re.IGNORECASE
)
_INTEGRATED_ARCHITECTURES = frozenset({"3.2", "5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1"})
"""Compute capabilities that only integrated parts have: Jetson's K1 to Thor, and GB10."""

_RESERVED_UNKNOWN = "this driver's older memory call may count what it reserves as used"
_MEMINFO_CHARS = 4096


def is_integrated(identity: Values) -> bool:
    """Whether a GPU uses the machine's memory, by its name or its architecture."""
    if identity.get("compute_capability") in _INTEGRATED_ARCHITECTURES:
        return True
    return bool(_INTEGRATED_NAMES.search(str(identity.get("name") or "")))


def read_memory(nvml: ModuleType, handle: object, *, unified: bool, meminfo: str) -> Values:
    """Read total, used, free and reserved memory.

    `meminfo` is the path of the kernel's file, which is read for a GPU in unified memory.

    Raises:
        UnknownValueError: the answer cannot be true.
        NVMLError: the driver does not answer.
    """
    try:
        info: object = first_known(
            nvml,
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2),
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
        )
    except nvml.NVMLError_NotSupported:
        if unified:
            return _machine_memory(meminfo)
        raise
    return _check(info)


def _check(info: object) -> Values:
    total, used, free = (int(getattr(info, name)) for name in ("total", "used", "free"))
    if not 0 < total <= ABSURD_BYTES:
        raise UnknownValueError(f"the driver answered a total of {total} bytes, which cannot be")
    size: Values = {"memory_mb": total // MIB, "memory_kind": "dedicated"}
    if used > total or free > total:
        raise UnknownValueError(f"the driver answered {used} bytes used and {free} free of {total}", size)
    known: Values = {**size, "memory_used_mb": used // MIB, "memory_free_mb": free // MIB}
    reserved: int | None = getattr(info, "reserved", None)
    if reserved is None:
        raise UnknownValueError(_RESERVED_UNKNOWN, known)
    if reserved > total:
        raise UnknownValueError(f"the driver answered {reserved} bytes reserved of {total}", known)
    return {**known, "memory_reserved_mb": reserved // MIB}


def _machine_memory(meminfo: str) -> Values:
    """Read the machine's memory, of which an integrated GPU uses what it needs."""
    kind: Values = {"memory_kind": "unified"}
    try:
        with open(meminfo, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            lines = dict(line.partition(":")[::2] for line in file.read(_MEMINFO_CHARS).splitlines())
    except OSError as error:
        raise UnknownValueError(
            f"the GPU uses the machine's memory, which cannot be read ({error})", kind
        ) from None
    total, available = (_mib(lines.get(name, "")) for name in ("MemTotal", "MemAvailable"))
    if not total:
        raise UnknownValueError(
            "the GPU uses the machine's memory, whose size the kernel does not report", kind
        )
    size: Values = {**kind, "memory_mb": total}
    if available is None or available > total:
        raise UnknownValueError(
            "the kernel does not report how much of the machine's memory is available", size
        )
    known: Values = {**size, "memory_used_mb": total - available, "memory_free_mb": available}
    raise UnknownValueError("the GPU uses the machine's memory and reserves none", known)


def _mib(text: str) -> int | None:
    kib = text.split()
    return int(kib[0]) // 1024 if kib and kib[0].isdecimal() else None
