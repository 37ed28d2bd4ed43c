"""The compute processes on a GPU, by the newest of the three calls that the driver has.

Drivers from 535.43 to 535.85 answer with lists whose entries are shifted: they are not queried.
Pids are those of the driver's namespace; whose they are is not decided here.
"""

import re
from collections.abc import Sequence
from types import ModuleType

from gpu_agent.probe.nvml.errors import UnknownValueError, Values, first_known
from gpu_agent.probe.nvml.memory import ABSURD_BYTES, MIB

BROKEN_SERIES = ((535, 43), (535, 85))
"""The first and the last driver whose process lists are wrong, by major and minor version."""

_MORE_THAN_COUNTED = 5
_FEWER_THAN = 65_536


def lists_are_broken(driver_version: object) -> bool:
    """Whether this driver is of the series that answers with wrong process lists."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", str(driver_version or ""))
    first, last = BROKEN_SERIES
    return found is not None and first <= (int(found[1]), int(found[2])) <= last


def read_processes(nvml: ModuleType, handle: object, *, driver_version: object) -> Values:
    """List the compute processes of a GPU or a MIG device.

    Raises:
        UnknownValueError: this driver's lists are known to be wrong.
        NVMLError: the driver does not answer.
    """
    if lists_are_broken(driver_version):
        raise UnknownValueError(f"driver {driver_version} answers with wrong process lists: update it")
    listed = first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle),
        lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
        lambda: _by_first_version(nvml, handle),
    )
    return {"processes": [_described(one) for one in listed] if isinstance(listed, list) else []}


def _described(one: object) -> Values:
    used: int | None = getattr(one, "usedGpuMemory", None)
    return {
        "pid": getattr(one, "pid", None),
        "memory_mb": None if used is None or used > ABSURD_BYTES else used // MIB,
    }


def _by_first_version(nvml: ModuleType, handle: object) -> Sequence[object]:
    import ctypes  # noqa: PLC0415 - the child has it; others only need the names of readings

    class ProcessInfoV1(ctypes.Structure):
        """NVML's `nvmlProcessInfo_v1_t`, which the binding no longer has."""

        _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))

    try:
        call = nvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses
    except AttributeError:
        raise nvml.NVMLError(nvml.NVML_ERROR_FUNCTION_NOT_FOUND) from None
    count = ctypes.c_uint(0)
    code = call(handle, ctypes.byref(count), None)
    if code == nvml.NVML_ERROR_INSUFFICIENT_SIZE:
        count.value = min(count.value + _MORE_THAN_COUNTED, _FEWER_THAN)
        found = (ProcessInfoV1 * count.value)()
        code = call(handle, ctypes.byref(count), found)
        if code == nvml.NVML_SUCCESS:
            return list(found[: min(count.value, len(found))])
    if code != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(code)
    return []
