"""The links of one GPU to others: NVLink, and the fabric of a machine with NVSwitches.

Runs inside the NVML child, with the binding handed in. Nothing is judged here: whether a link that is down is
a fault depends on earlier readings, which `health.history` knows.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType

from gpu_agent.probe.nvml.errors import UnknownValueError, Values, first_known

MOST_LINKS = 64
MOST_ERRORS = 1 << 48
"""No GPU has more; a driver that says so is not believed."""

_LINK_COUNT = 91
"""nvml.h's NVML_FI_DEV_NVLINK_LINK_COUNT."""
_LINK_STATE = 165
"""NVML_FI_DEV_NVLINK_GET_STATE of one link: 0 is inactive, 1 active, 2 asleep."""
_ERRORS = (52, 59)
"""Replays and recoveries of all links (NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL and its sibling).

DCGM's health watch holds each of them for a fault, and CRC errors only at 100 a second:
https://github.com/NVIDIA/DCGM, DcgmHealthWatch.cpp and dcgm_gpu_hardware_limits.h.
"""
_LINK_ERRORS = (161, 162, 215)
"""The same of one link, where the driver has no total; Blackwell counts all recoveries in the last."""

BY_LINK = "nvlink_errors_by_link"
"""What `read_nvlinks` counts where the driver has no total: (field, link) → errors."""

LinkCounts = dict[tuple[int, int], tuple[int, int]]
"""(field, link) → the count from which its errors are counted, and its last count."""

_NOT_STARTED, _IN_PROGRESS, _COMPLETED = 1, 2, 3
_FABRIC_STATE_BITS = 0xFF
"""The state is one byte in nvml.h, and four in the binding: the other three are padding."""

_TRUE, _FALSE, _NO_PARTITION = 1, 2, 4
_MASK = (
    (0, 0x3, "fabric_degraded_bandwidth", frozenset({_TRUE})),
    (2, 0x3, "fabric_route_recovery", frozenset({_TRUE})),
    (4, 0x3, "fabric_route_unhealthy", frozenset({_TRUE})),
    (6, 0x3, "fabric_access_timeout", frozenset({_TRUE})),
    (8, 0xF, "fabric_no_partition", frozenset({_NO_PARTITION})),
    (8, 0xF, "fabric_misconfigured", frozenset(range(2, 16)) - {_NO_PARTITION}),
    (12, 0x3, "fabric_no_partition", frozenset({_FALSE})),
)
"""Parts of the health mask (NVML_GPU_FABRIC_HEALTH_MASK_*): shift, width, reason code, values with it."""


def read_fabric(nvml: ModuleType, handle: object) -> Values:
    """List what is wrong with the GPU's place in the fabric, as reason codes.

    Raises:
        NVMLError: NOT_SUPPORTED where the machine has no fabric.
    """
    info = first_known(
        nvml,
        lambda: _fabric_info(nvml, handle),
        lambda: _fabric_info_v1(nvml, handle),
    )
    state = getattr(info, "state", 0) & _FABRIC_STATE_BITS
    if state in (_NOT_STARTED, _IN_PROGRESS):
        return {"fabric_faults": ["fabric_incomplete"]}
    if state != _COMPLETED:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    mask = getattr(info, "healthMask", 0)
    faults = ["fabric_failed"] if getattr(info, "status", 0) != nvml.NVML_SUCCESS else []
    faults += [code for shift, width, code, values in _MASK if (mask >> shift) & width in values]
    return {"fabric_faults": list(dict.fromkeys(faults))}


def _fabric_info(nvml: ModuleType, handle: object) -> object:
    import ctypes  # noqa: PLC0415 - the child has it; others only need the names of readings

    info = nvml.c_nvmlGpuFabricInfo_v2_t()
    nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return info


def _fabric_info_v1(nvml: ModuleType, handle: object) -> object:
    import ctypes  # noqa: PLC0415 - as above

    class FabricInfoV1(ctypes.Structure):
        """NVML's `nvmlGpuFabricInfo_t`, which the binding will drop."""

        _fields_ = (
            ("clusterUuid", ctypes.c_ubyte * 16),
            ("status", ctypes.c_uint),
            ("cliqueId", ctypes.c_uint),
            ("state", ctypes.c_ubyte),
        )

    info = FabricInfoV1()
    nvml.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(info))
    return info


def read_nvlinks(nvml: ModuleType, handle: object) -> Values:
    """Count the NVLinks that are up and down, and their errors since the driver was loaded.

    Errors that the driver counts by link are given as `BY_LINK` too, for `sum_of_links`.

    Raises:
        NVMLError: NOT_SUPPORTED where the GPU has no NVLink.
    """
    (counted,) = nvml.nvmlDeviceGetFieldValues(handle, [_LINK_COUNT])
    links = field_number(nvml, counted)
    if not links:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    if links > MOST_LINKS:
        raise UnknownValueError(f"the driver answered {links} NVLinks, which cannot be")
    asked = [*_ERRORS, *((_LINK_STATE, link) for link in range(links))]
    values = _numbers(nvml, nvml.nvmlDeviceGetFieldValues(handle, asked))
    errors, states = _known(values[: len(_ERRORS)]), _known(values[len(_ERRORS) :])
    known: Values = {"nvlinks_up": sum(map(bool, states)), "nvlinks_down": states.count(0)} if states else {}
    complete = len(errors) == len(_ERRORS)  # or the other total would be new errors once it is known
    if not errors:
        each = [(field, link) for field in _LINK_ERRORS for link in range(links)]
        numbers = _numbers(nvml, nvml.nvmlDeviceGetFieldValues(handle, each))
        known[BY_LINK] = {
            key: number for key, number in zip(each, numbers, strict=True) if number is not None
        }
        errors = _known(numbers)
        complete = bool(errors)
    if complete and sum(errors) > MOST_ERRORS:
        known.pop(BY_LINK, None)
        raise UnknownValueError(f"the driver answered {sum(errors)} NVLink errors, which cannot be", known)
    if complete:
        known["nvlink_errors"] = sum(errors)
    if states and complete:
        return known
    raise UnknownValueError("the installed driver does not say", known)


def sum_of_links(counts: LinkCounts, counted: Mapping[tuple[int, int], int]) -> int:
    """Sum the errors of all links of one GPU, and note them in `counts`.

    A link that is silent counts as it did last. One that answers for the first time after others have counts
    from then on: errors of long ago are no new ones.
    """
    is_first = not counts
    for key, count in counted.items():
        base, before = counts.get(key, (0 if is_first else count, count))
        counts[key] = (0 if count < before else base, count)
    return sum(count - base for base, count in counts.values())


def field_number(nvml: ModuleType, field: object) -> int:
    """Return the number of one field value, which has an error code of its own.

    Raises:
        NVMLError: the driver does not answer; FUNCTION_NOT_FOUND where the field is newer than the driver.
        UnknownValueError: UNKNOWN, which in a field is harmless.
    """
    code = getattr(field, "nvmlReturn", None)
    if code == nvml.NVML_ERROR_INVALID_ARGUMENT:
        raise nvml.NVMLError(nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    if code == nvml.NVML_ERROR_UNKNOWN:
        raise UnknownValueError("the driver does not say")
    if code != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(code)
    return _value(field)


def _value(field: object) -> int:
    member = _MEMBERS.get(getattr(field, "valueType", 0), "uiVal")
    number: int = getattr(getattr(field, "value", None), member)
    return number


_MEMBERS = {2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
"""nvmlValueType_t → the member of the union that holds it; any other is an unsigned int."""


def _numbers(nvml: ModuleType, fields: Iterable[object]) -> list[int | None]:
    """Return the number of each field value; None where the driver does not have it. A lost GPU raises."""
    found: list[int | None] = []
    for field in fields:
        code = getattr(field, "nvmlReturn", None)
        if code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
            raise nvml.NVMLError(code)
        found.append(_value(field) if code == nvml.NVML_SUCCESS else None)
    return found


def _known(numbers: Iterable[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]
