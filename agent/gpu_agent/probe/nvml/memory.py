"""A GPU's memory as NVML tells it, and the machine's memory where the GPU has none of its own.

The call's second version tells what the driver keeps for itself apart from what is in use; the
first one, on drivers from 510 on, counts it as used. NOT_SUPPORTED is another answer than an old
driver's: an integrated GPU lives in the machine's memory, any other GPU's is unknown. It
refuses to guess a size.
"""

import re
from types import ModuleType

from gpu_agent.probe.nvml.errors import ABSURD_BYTES, MIB, UnknownValueError, Values, first_known

FIELDS = ("memory_mb", "memory_used_mb", "memory_free_mb", "memory_reserved_mb")

_INTEGRATED_NAMES = re.compile(
    r"\b(GB10|Tegra|Jetson|Orin|Xavier|Thor|nvgpu|Grace|GH200|GB200|GB300)\b", re.IGNORECASE
)
_INTEGRATED_ARCHITECTURES = frozenset({"3.2", "5.3", "6.2", "7.2", "8.7", "10.1", "11.0", "12.1"})
"""Compute capabilities that only integrated parts have: Jetson's K1 to Thor, and GB10."""

_UNTOLD_RESERVE = "this driver's older memory call may count what it keeps for itself as used"
_MEMINFO_CHARS = 4096


def is_integrated(identity: Values) -> bool:
    """Tell whether a GPU lives in the machine's memory, by its name or its architecture."""
    if identity.get("compute_capability") in _INTEGRATED_ARCHITECTURES:
        return True
    return bool(_INTEGRATED_NAMES.search(str(identity.get("name") or "")))


def memory(nvml: ModuleType, handle: object, *, unified: bool, meminfo: str) -> Values:
    """Read total, used, free and reserved; `meminfo` is the kernel's file, for a GPU in unified memory.

    Raises:
        UntoldError: the answer cannot be believed.
        NVMLError: the driver will not tell.
    """
    try:
        told: object = first_known(
            nvml,
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2),
            lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
        )
    except nvml.NVMLError_NotSupported:
        if unified:
            return _of_the_machine(meminfo)
        raise
    return _believed(told)


def _believed(told: object) -> Values:
    total, used, free = (int(getattr(told, name)) for name in ("total", "used", "free"))
    if not 0 < total <= ABSURD_BYTES:
        raise UnknownValueError(f"the driver answered a total of {total} bytes, which cannot be")
    size: Values = {"memory_mb": total // MIB, "memory_kind": "dedicated"}
    if used > total or free > total:
        raise UnknownValueError(f"the driver answered {used} bytes used and {free} free of {total}", size)
    known: Values = {**size, "memory_used_mb": used // MIB, "memory_free_mb": free // MIB}
    reserved: int | None = getattr(told, "reserved", None)
    if reserved is None:
        raise UnknownValueError(_UNTOLD_RESERVE, known)
    if reserved > total:
        raise UnknownValueError(f"the driver answered {reserved} bytes reserved of {total}", known)
    return {**known, "memory_reserved_mb": reserved // MIB}


def _of_the_machine(meminfo: str) -> Values:
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
            "the GPU uses the machine's memory, whose size the kernel does not tell", kind
        )
    size: Values = {**kind, "memory_mb": total}
    if available is None or available > total:
        raise UnknownValueError(
            "the kernel does not tell how much of the machine's memory is available", size
        )
    known: Values = {**size, "memory_used_mb": total - available, "memory_free_mb": available}
    raise UnknownValueError("the GPU uses the machine's memory and keeps none apart", known)


def _mib(text: str) -> int | None:
    kib = text.split()
    return int(kib[0]) // 1024 if kib and kib[0].isdecimal() else None
