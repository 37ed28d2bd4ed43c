"""The values that NVML gives of one GPU: its identity, its figures, and the reason for each unknown one.

Runs inside the NVML child, with the binding handed in. A getter is (fields, function). No health is judged
here; a lost GPU, or a failed driver, is an exception.

Values that change slowly are read about every tenth time that the GPU is asked, and again at once when
something has happened.
A getter that the driver does not have is called once each time that the library is opened.

To add a reading: a field in `wire.inventory.Gpu`; here a row in `_NUMBERS`, or a getter in `_EVERY_GETTER`
for what is no single number, and its name in `_SLOW` where it changes slowly; to send it in heartbeats, a
field of its name in `wire.messages.GpuFigures`; a line of the table in `docs/reference/gpus.md`, and
`make schema`. Elsewhere it is unknown with a reason, until `collectors.amd` has a row for its file in sysfs,
and `simulation.gpus` a value.

Units are the inventory's: MiB, °C, W, MHz, percent.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType

from gpu_agent.probe.nvml import links, memory, processes
from gpu_agent.probe.nvml.errors import (
    GpuGoneError,
    UnknownValueError,
    Values,
    as_text,
    first_known,
    is_driver_wide,
    is_lasting,
    raise_if_gone,
    salvage_text,
    unknown_reason,
)
from gpu_agent.probe.stand_in import UNIDENTIFIED

Getter = tuple[tuple[str, ...], Callable[[ModuleType, object], Values]]
"""The fields that a getter fills, and the getter: (binding, handle) → values."""
_Call = Callable[[ModuleType, object], int]
"""(binding, handle) → one number, in the driver's unit."""

TIMEOUT_SECONDS = 2.0
"""A GPU that takes longer over its getters, one or all together, is not queried further in that reading."""
TOO_SLOW = "not read: the GPU took too long over other values"

Lacking = dict[tuple[str, ...], dict[str, str]]
"""The fields of each getter that the driver does not have for this GPU → the reasons for them."""

MAX_CAPABILITY = 99
MOST_GPUS = 1024
_MOST_MEMORY_MB = memory.ABSURD_BYTES // memory.MIB

_CLOCK = (0, 20_000)
_GENERATION = (1, 16)
_LANES = (1, 64)
_LOAD = ("utilization_percent", "memory_utilization_percent")
_ROW_COUNTS = ("remapped_rows_correctable", "remapped_rows_uncorrectable")
_COUNT = (0, 2**32 - 2)
"""What a driver counts in 32 bits; all ones stand for an unknown number."""
_NOT_IN_MIG_MODE = "not available for a GPU in MIG mode"

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

RECOVERY_ACTION_FIELD = 230
"""nvml.h's NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, for which older bindings have no name."""

RECOVERY_ACTIONS = {
    0: "none",
    1: "recovery_reset",
    2: "recovery_reboot",
    3: "recovery_drain_p2p",
    4: "recovery_drain_and_reset",
    5: "recovery_imex",
    6: "recovery_bus_reset",
    7: "recovery_reboot",
}
"""NVML's recovery actions → the code of the reason that each is."""

COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


def read_identity(nvml: ModuleType, handle: object) -> Values:
    """Read what stays the same as long as the handle lives."""
    return run_getters(nvml, handle, _IDENTITY)


def figure_getters(
    *, identity: Values, driver_version: object, meminfo: str, with_slow: bool
) -> tuple[Getter, ...]:
    """Return the getters of what changes from one moment to the next, and `with_slow` of what changes slowly.

    `meminfo` is the path of the kernel's file.
    """
    unified = memory.is_integrated(identity)
    return (
        (memory.FIELDS, partial(memory.read_memory, unified=unified, meminfo=meminfo)),
        *_FIGURE_GETTERS,
        (("processes",), partial(processes.read_processes, driver_version=driver_version)),
        *(_SLOW_GETTERS if with_slow else ()),
    )


def read_figures(nvml: ModuleType, handle: object, getters: Sequence[Getter], *, lacking: Lacking) -> Values:
    """Read the figures; `lacking` holds what earlier calls found out, and is added to."""
    values = run_getters(nvml, handle, getters, timeout_seconds=TIMEOUT_SECONDS, lacking=lacking)
    unknowns = values["unknowns"]
    if values.get("mig_enabled") and isinstance(unknowns, dict):
        unknowns.update((name, _NOT_IN_MIG_MODE) for name in _LOAD if name in unknowns)
    return values


def check_answers(nvml: ModuleType, handle: object) -> None:
    """Ask a GPU for one quick value, to see that it is still there.

    Raises:
        GpuGoneError: it is lost, or waits for a reset.
        NVMLError: the whole driver has failed.
    """
    for call in _QUICK:
        try:
            call(nvml, handle)
        except nvml.NVMLError as error:
            if is_driver_wide(nvml, error):
                raise
            raise_if_gone(nvml, error, "looking at the GPU")
        else:
            return


def slow_part(figures: Values) -> Values:
    """Return the values among these that change slowly, with the reasons for those that are unknown."""
    unknowns = figures["unknowns"]
    reasons = unknowns if isinstance(unknowns, dict) else {}
    return {
        **{name: figures[name] for name in SLOW_FIELDS if name in figures},
        "unknowns": {name: reasons[name] for name in SLOW_FIELDS if name in reasons},
    }


def run_getters(
    nvml: ModuleType,
    handle: object,
    getters: Sequence[Getter],
    *,
    timeout_seconds: float = math.inf,
    lacking: Lacking | None = None,
) -> Values:
    """Run getters but for `lacking`; one that fails leaves its fields out and its reason in `unknowns`.

    After the timeout no further getter runs: a GPU that is about to fail can take so long over each that the
    other GPUs of the machine would not be read for minutes.
    """
    values: Values = {}
    unknowns: dict[str, str] = {}
    lacking = {} if lacking is None else lacking
    began = time.perf_counter()
    for fields, getter in getters:
        if fields in lacking:
            unknowns.update(lacking[fields])
            continue
        if time.perf_counter() - began > timeout_seconds:
            unknowns.update(dict.fromkeys(fields, TOO_SLOW))
            continue
        try:
            known, unknown = _run(nvml, handle, fields, getter=getter, lacking=lacking)
        except GpuGoneError as gone:
            gone.known = values
            raise
        values |= known
        unknowns |= unknown
    return {**values, "unknowns": unknowns}


def _run(
    nvml: ModuleType,
    handle: object,
    fields: tuple[str, ...],
    *,
    getter: Callable[[ModuleType, object], Values],
    lacking: Lacking,
) -> tuple[Values, dict[str, str]]:
    """Run one getter: its values, and the reason for each field that has none."""
    try:
        return getter(nvml, handle), {}
    except nvml.NVMLError as error:
        if is_driver_wide(nvml, error):
            raise
        raise_if_gone(nvml, error, f"reading {fields[0]}")
        unknown = dict.fromkeys(fields, unknown_reason(nvml, error))
        if is_lasting(nvml, error):
            lacking[fields] = unknown
        return {}, unknown
    except UnknownValueError as error:
        return error.known, {field: str(error) for field in fields if field not in error.known}
    except nvml.NVMLLibraryMismatchError as error:
        return {}, dict.fromkeys(fields, str(error))
    except UnicodeDecodeError:
        return {}, dict.fromkeys(fields, "the driver answered with a text that is no UTF-8")


def check_bounds(field: str, value: int, *, per_unit: int = 1) -> int:
    """Return the value; raises `UnknownValueError` for one that no GPU has.

    `per_unit` is how many of the driver's units make one of the inventory's.
    """
    low, high = GPU_BOUNDS[field]
    return _check_range(value, low * per_unit, high * per_unit)


def _check_range(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UnknownValueError(f"the driver answered {value}, which cannot be")
    return value


# ---- identity


def read_uuid(nvml: ModuleType, handle: object) -> Values:
    """Read the UUID of a GPU or a MIG device: it is the key everywhere, so it must be printable ASCII."""
    uuid = as_text(nvml.nvmlDeviceGetUUID(handle))
    if not uuid.isascii() or not uuid.isprintable() or not uuid or uuid.startswith(UNIDENTIFIED):
        raise UnknownValueError(f"the driver answered {uuid!r}, which is no UUID")
    return {"uuid": uuid}


def read_name(nvml: ModuleType, handle: object) -> Values:
    """Read the name of a GPU or a MIG device, which may be no valid UTF-8."""
    try:
        return {"name": as_text(nvml.nvmlDeviceGetName(handle))}
    except UnicodeDecodeError as raised:
        return {"name": salvage_text(raised)}


def _compute_capability(nvml: ModuleType, handle: object) -> Values:
    major, minor = (
        _check_range(part, 0, MAX_CAPABILITY) for part in nvml.nvmlDeviceGetCudaComputeCapability(handle)
    )
    return {"compute_capability": f"{major}.{minor}"}


def _pci_bus_id(nvml: ModuleType, handle: object) -> Values:
    return {"pci_bus_id": as_text(nvml.nvmlDeviceGetPciInfo_v3(handle).busId)}


# ---- figures


def _utilization(nvml: ModuleType, handle: object) -> Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {
        "utilization_percent": check_bounds("utilization_percent", rates.gpu),
        "memory_utilization_percent": check_bounds("memory_utilization_percent", rates.memory),
    }


def _number(nvml: ModuleType, handle: object, *, field: str, call: _Call, per_unit: int) -> Values:
    value = check_bounds(field, call(nvml, handle), per_unit=per_unit)
    return {field: value if per_unit == 1 else value / per_unit}


def _temperature(nvml: ModuleType, handle: object) -> int:
    sensor = nvml.NVML_TEMPERATURE_GPU
    degrees = first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetTemperature(handle, sensor),
        lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor),
    )
    return int(str(degrees))


def _energy(nvml: ModuleType, handle: object) -> int:
    """Count the energy used since the driver was loaded: a reset of the GPU sets it back to zero.

    Zero is no valid answer: a millijoule is used within a millisecond.
    """
    millijoules: int = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    if not millijoules:
        raise UnknownValueError("the driver answered 0, which cannot be")
    return millijoules


def _ecc(nvml: ModuleType, handle: object) -> int:
    """Count uncorrected errors since the driver was loaded; only their growth is a fault."""
    kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    count: int = nvml.nvmlDeviceGetTotalEccErrors(handle, kind, since)
    return count


def _remapped_rows(nvml: ModuleType, handle: object) -> Values:
    correctable, uncorrectable, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
    known: Values = {"row_remap_pending": bool(pending), "row_remap_failed": bool(failed)}
    for field, count in zip(_ROW_COUNTS, (correctable, uncorrectable), strict=True):
        try:
            known[field] = check_bounds(field, count)
        except UnknownValueError as error:
            raise UnknownValueError(str(error), known) from error
    return known


def _retired_pages(nvml: ModuleType, handle: object) -> Values:
    return {"retired_pages_pending": bool(nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))}


def _throttle(nvml: ModuleType, handle: object) -> Values:
    mask = first_known(
        nvml,
        lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return {"throttle_reasons": [name for bit, name in THROTTLE_REASONS.items() if int(str(mask)) & bit]}


def _recovery_action(nvml: ModuleType, handle: object) -> Values:
    """Read the recovery that the driver requests."""
    (field,) = nvml.nvmlDeviceGetFieldValues(handle, [RECOVERY_ACTION_FIELD])
    return {"recovery_action": RECOVERY_ACTIONS.get(links.field_number(nvml, field), "recovery_other")}


def _mig(nvml: ModuleType, handle: object) -> Values:
    current, _ = nvml.nvmlDeviceGetMigMode(handle)
    return {"mig_enabled": bool(current)}


def _compute_mode(nvml: ModuleType, handle: object) -> Values:
    mode = nvml.nvmlDeviceGetComputeMode(handle)
    if mode not in COMPUTE_MODES:
        raise UnknownValueError(f"the driver answered {mode}, which is no compute mode")
    return {"compute_mode": COMPUTE_MODES[mode]}


def _sram_threshold(nvml: ModuleType, handle: object) -> Values:
    """Read whether SRAM errors exceed the limit of NVIDIA's field diagnostic; most drivers tell root only."""
    import ctypes  # noqa: PLC0415 - the child has it; others only need the names of readings

    status = nvml.c_nvmlEccSramErrorStatus_v1_t()
    nvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return {"sram_threshold_exceeded": bool(status.bThresholdExceeded)}


_IDENTITY: tuple[Getter, ...] = (
    (("uuid",), read_uuid),
    (("name",), read_name),
    (("compute_capability",), _compute_capability),
    (("pci_bus_id",), _pci_bus_id),
)

_NUMBERS: Mapping[str, tuple[_Call, int, tuple[int, int]]] = {
    "temperature_c": (_temperature, 1, (-200, 200)),
    "power_w": (lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu), 1000, (0, 10_000)),
    "power_limit_w": (lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu), 1000, (0, 10_000)),
    "clock_sm_mhz": (lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), 1, _CLOCK),
    "clock_memory_mhz": (lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM), 1, _CLOCK),
    # over two hundred years at a kilowatt; a false count would pass for a reset
    "energy_mj": (_energy, 1, (0, 10**16)),
    "ecc_uncorrected": (_ecc, 1, (0, 1 << 40)),
    "pcie_generation": (lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkGeneration(gpu), 1, _GENERATION),
    "pcie_width": (lambda nvml, gpu: nvml.nvmlDeviceGetCurrPcieLinkWidth(gpu), 1, _LANES),
    "pcie_generation_max": (lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkGeneration(gpu), 1, _GENERATION),
    "pcie_width_max": (lambda nvml, gpu: nvml.nvmlDeviceGetMaxPcieLinkWidth(gpu), 1, _LANES),
    "pcie_replays": (lambda nvml, gpu: nvml.nvmlDeviceGetPcieReplayCounter(gpu), 1, _COUNT),
}
"""Field → its call, how many of the driver's units make one of the inventory's, and bounds in the latter."""

_QUICK: tuple[Callable[[ModuleType, object], object], ...] = (
    _temperature,
    lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu),
    lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu),
)
"""The first of these that a GPU has shows that it is there."""

GPU_BOUNDS: Mapping[str, tuple[int, int]] = {
    "index": (0, MOST_GPUS),
    "gpu_instance": (0, MOST_GPUS),
    "memory_mb": (1, _MOST_MEMORY_MB),
    "memory_used_mb": (0, _MOST_MEMORY_MB),
    "memory_free_mb": (0, _MOST_MEMORY_MB),
    "memory_reserved_mb": (0, _MOST_MEMORY_MB),
    **dict.fromkeys(_LOAD, (0, 100)),
    **dict.fromkeys(_ROW_COUNTS, _COUNT),
    **dict.fromkeys(("nvlinks_up", "nvlinks_down"), (0, links.MOST_LINKS)),
    "nvlink_errors": (0, links.MOST_ERRORS),
    **{field: bounds for field, (_, _, bounds) in _NUMBERS.items()},
}
"""The least and the most that a figure can be, read from NVML or by another collector.

Here, because the NVML child loads no dataclasses.
"""

_EVERY_GETTER: tuple[Getter, ...] = (
    (_LOAD, _utilization),
    *(
        ((field,), partial(_number, field=field, call=call, per_unit=per_unit))
        for field, (call, per_unit, _) in _NUMBERS.items()
    ),
    (("row_remap_pending", "row_remap_failed", *_ROW_COUNTS), _remapped_rows),
    (("retired_pages_pending",), _retired_pages),
    (("sram_threshold_exceeded",), _sram_threshold),
    (("recovery_action",), _recovery_action),
    (("throttle_reasons",), _throttle),
    (("compute_mode",), _compute_mode),
    (("fabric_faults",), links.read_fabric),
    (("nvlinks_up", "nvlinks_down", "nvlink_errors"), links.read_nvlinks),
    (("mig_enabled",), _mig),
)
"""Of the whole GPU: a MIG device does not have these figures."""

_SLOW = frozenset(
    {"power_limit_w", "pcie_generation_max", "pcie_width_max", "pcie_replays", "compute_mode"}
    | {"retired_pages_pending", "row_remap_pending", "sram_threshold_exceeded", "fabric_faults", "nvlinks_up"}
)
"""The first field of each getter whose values change slowly."""

_FIGURE_GETTERS = tuple(one for one in _EVERY_GETTER if one[0][0] not in _SLOW)
_SLOW_GETTERS = tuple(one for one in _EVERY_GETTER if one[0][0] in _SLOW)

SLOW_READINGS = 10
"""Values that change slowly are read once in so many readings and looks."""
SLOW_FIELDS = tuple(name for names, _ in _SLOW_GETTERS for name in names)

OF_THE_WHOLE_GPU = tuple(name for names, _ in _EVERY_GETTER for name in names)
"""Figures that a MIG device does not have."""

FIGURES = (*memory.FIELDS, *OF_THE_WHOLE_GPU, "processes")
"""All fields that `read_figures` may fill."""
