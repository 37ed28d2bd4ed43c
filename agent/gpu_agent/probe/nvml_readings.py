"""What NVML says about one GPU: plain values, and for each value it would not say, the reason.

Runs inside the NVML child, with the binding handed in. It judges no health, keeps
nothing, and never asks a GPU again that the driver has called lost.

Units are the inventory's: MiB, °C, W, MHz, percent.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

Values = dict[str, object]
Getter = tuple[tuple[str, ...], Callable[[ModuleType, object], Values]]
"""The fields that a getter fills, and the getter: (binding, handle) → values."""

MIB = 1 << 20
ABSURD_BYTES = 4 << 40
"""No GPU has more memory than this; drivers that do not know answer 2^64-1."""
MAX_CELSIUS = 200
MAX_MILLIWATTS = 10_000_000
MAX_MHZ = 20_000

THROTTLE_REASONS = {
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of NVML's clock event mask. Idleness and clocks set by an application slow nothing down."""


class GpuGoneError(Exception):
    """The driver gave this GPU up: its handle must not be used again. The machine's fault."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ImplausibleError(Exception):
    """The driver answered with a number that no GPU has. The machine's fault.

    `known` holds what the same answer said beside it and still counts.
    """

    def __init__(self, detail: str, known: Values | None = None) -> None:
        super().__init__(detail)
        self.known = known or {}


def identity(nvml: ModuleType, handle: object) -> Values:
    """Read what stays the same as long as the handle lives."""
    return _collect(nvml, handle, _IDENTITY)


def figures(nvml: ModuleType, handle: object) -> Values:
    """Read what changes from one moment to the next."""
    return _collect(nvml, handle, _FIGURES)


def raise_if_gone(nvml: ModuleType, error: object, doing: str) -> None:
    """Raise `GpuGoneError` when a code means that the GPU is lost or waits for a reset."""
    code = getattr(error, "value", None)
    if code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNKNOWN):
        raise GpuGoneError("gpu_lost", f"{doing}: {error}")
    if code == nvml.NVML_ERROR_RESET_REQUIRED:
        raise GpuGoneError("gpu_reset_required", f"{doing}: {error}")


def condemns_driver(nvml: ModuleType, error: object) -> bool:
    """Tell whether a code speaks of the whole driver, and not of one getter or one GPU."""
    return getattr(error, "value", None) in (
        nvml.NVML_ERROR_UNINITIALIZED,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    )


def words(raised: UnicodeDecodeError) -> str:
    """Save what can be read of a text that is no UTF-8, as some WSL2 drivers send."""
    return raised.object.decode("utf-8", "replace")


def _collect(nvml: ModuleType, handle: object, getters: Sequence[Getter]) -> Values:
    """Run getters; one that fails leaves its fields out and its reason in `unknowns`."""
    values: Values = {}
    unknowns: dict[str, str] = {}
    for fields, getter in getters:
        try:
            values.update(getter(nvml, handle))
        except nvml.NVMLError as error:
            if condemns_driver(nvml, error):
                raise
            raise_if_gone(nvml, error, f"reading {fields[0]}")
            unknowns.update(dict.fromkeys(fields, _reason(nvml, error)))
        except ImplausibleError as error:
            values.update(error.known)
            unknowns.update({field: str(error) for field in fields if field not in error.known})
        except nvml.NVMLLibraryMismatchError as error:
            unknowns.update(dict.fromkeys(fields, str(error)))
    return {**values, "unknowns": unknowns}


def _reason(nvml: ModuleType, error: object) -> str:
    known = {
        nvml.NVML_ERROR_NOT_SUPPORTED: "not supported by this GPU and driver",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the installed driver is too old to say",
        nvml.NVML_ERROR_NO_PERMISSION: "the agent's user may not read it",
    }
    return known.get(getattr(error, "value", None)) or f"NVML answered: {error}"


def _first_known(nvml: ModuleType, *calls: Callable[[], object]) -> object:
    """Try calls from the newest to the oldest, until one that the installed driver has."""
    *newer, oldest = calls
    for call in newer:
        try:
            return call()
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):
            continue
    return oldest()


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ImplausibleError(f"the driver answered {value}, which cannot be")
    return value


# ---- identity


def _uuid(nvml: ModuleType, handle: object) -> Values:
    return {"uuid": nvml.nvmlDeviceGetUUID(handle)}


def _name(nvml: ModuleType, handle: object) -> Values:
    try:
        return {"name": nvml.nvmlDeviceGetName(handle)}
    except UnicodeDecodeError as raised:
        return {"name": words(raised)}


def _compute_capability(nvml: ModuleType, handle: object) -> Values:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {"compute_capability": f"{major}.{minor}"}


def _pci_bus_id(nvml: ModuleType, handle: object) -> Values:
    bus_id = nvml.nvmlDeviceGetPciInfo_v3(handle).busId
    return {"pci_bus_id": bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else str(bus_id)}


# ---- figures


def _memory(nvml: ModuleType, handle: object) -> Values:
    """Read memory; in the call's first version, `used` holds what drivers from 510 on reserve."""
    memory: object = _first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2),
        lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
    )
    total, used, free = (int(getattr(memory, name)) for name in ("total", "used", "free"))
    if not 0 < total <= ABSURD_BYTES:
        raise ImplausibleError(f"the driver answered a total of {total} bytes, which cannot be")
    size: Values = {"memory_mb": total // MIB, "memory_kind": "dedicated"}
    if used > total or free > total:
        raise ImplausibleError(f"the driver answered {used} bytes used and {free} free of {total}", size)
    return {**size, "memory_used_mb": used // MIB, "memory_free_mb": free // MIB}


def _utilization(nvml: ModuleType, handle: object) -> Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {
        "utilization_percent": _within(rates.gpu, 0, 100),
        "memory_utilization_percent": _within(rates.memory, 0, 100),
    }


def _temperature(nvml: ModuleType, handle: object) -> Values:
    sensor = nvml.NVML_TEMPERATURE_GPU
    degrees = _first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetTemperature(handle, sensor),
        lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor),
    )
    return {"temperature_c": _within(int(str(degrees)), -MAX_CELSIUS, MAX_CELSIUS)}


def _power(nvml: ModuleType, handle: object) -> Values:
    return {"power_w": _within(nvml.nvmlDeviceGetPowerUsage(handle), 0, MAX_MILLIWATTS) / 1000}


def _power_limit(nvml: ModuleType, handle: object) -> Values:
    return {"power_limit_w": _within(nvml.nvmlDeviceGetEnforcedPowerLimit(handle), 0, MAX_MILLIWATTS) / 1000}


def _clock_sm(nvml: ModuleType, handle: object) -> Values:
    return {"clock_sm_mhz": _within(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), 0, MAX_MHZ)}


def _clock_memory(nvml: ModuleType, handle: object) -> Values:
    return {"clock_memory_mhz": _within(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM), 0, MAX_MHZ)}


def _ecc(nvml: ModuleType, handle: object) -> Values:
    """Count uncorrected errors since the driver was loaded; their growth is what tells."""
    count = nvml.nvmlDeviceGetTotalEccErrors(
        handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    )
    return {"ecc_uncorrected": count}


def _remapped_rows(nvml: ModuleType, handle: object) -> Values:
    _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
    return {"row_remap_pending": bool(pending), "row_remap_failed": bool(failed)}


def _retired_pages(nvml: ModuleType, handle: object) -> Values:
    return {"retired_pages_pending": bool(nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))}


def _throttle(nvml: ModuleType, handle: object) -> Values:
    mask = _first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return {"throttle_reasons": [name for bit, name in THROTTLE_REASONS.items() if int(str(mask)) & bit]}


def _mig(nvml: ModuleType, handle: object) -> Values:
    current, _ = nvml.nvmlDeviceGetMigMode(handle)
    return {"mig_enabled": bool(current)}


def _processes(nvml: ModuleType, handle: object) -> Values:
    return {
        "processes": [
            {"pid": one.pid, "memory_mb": None if one.usedGpuMemory is None else one.usedGpuMemory // MIB}
            for one in nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
        ]
    }


_IDENTITY: tuple[Getter, ...] = (
    (("uuid",), _uuid),
    (("name",), _name),
    (("compute_capability",), _compute_capability),
    (("pci_bus_id",), _pci_bus_id),
)

_FIGURES: tuple[Getter, ...] = (
    (("memory_mb", "memory_used_mb", "memory_free_mb"), _memory),
    (("utilization_percent", "memory_utilization_percent"), _utilization),
    (("temperature_c",), _temperature),
    (("power_w",), _power),
    (("power_limit_w",), _power_limit),
    (("clock_sm_mhz",), _clock_sm),
    (("clock_memory_mhz",), _clock_memory),
    (("ecc_uncorrected",), _ecc),
    (("row_remap_pending", "row_remap_failed"), _remapped_rows),
    (("retired_pages_pending",), _retired_pages),
    (("throttle_reasons",), _throttle),
    (("mig_enabled",), _mig),
    (("processes",), _processes),
)
