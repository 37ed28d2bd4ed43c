"""Machines with drivers that misbehave at random: the fake's statements, drawn from dice that are handed in.

Values are what drivers were seen to answer and what none should. Each machine is a list of
lines for the control file; it also says whether a call may hang or end the process.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

CALLS = (
    "*",
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetGpuFabricInfo",
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetCreate",
    "nvmlEventSetWait_v2",
    "nvmlEventSetFree",
)
CODES = (
    *("GPU_IS_LOST", "UNKNOWN", "RESET_REQUIRED", "UNINITIALIZED", "LIB_RM_VERSION_MISMATCH"),
    *("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "NO_PERMISSION", "TIMEOUT"),
    *("NOT_FOUND", "GPU_NOT_FOUND", "DRIVER_NOT_LOADED", "IRQ_ISSUE", "LIBRARY_NOT_FOUND"),
    *("OPERATING_SYSTEM", "INVALID_ARGUMENT", "7", "23", "28", "998", "-5", "123456"),
)
NUMBERS = (
    "0",
    "1",
    "-1",
    "100",
    "101",
    "4294967295",
    "4294967294",
    "18446744073709551615",
    "9223372036854775808",
)
TEXTS = (
    *(
        "",
        "nan",
        "NVIDIA GB10",
        "Orin (nvgpu)",
        "%s%n",
        "\x1b[31mred\x1b[0m",
        '"}]}',
        "\udcff\udcfe",
        "x" * 70,
    ),
    *("GPU-dead", "unidentified-0", "名前", "\u202eevil", "12.1", "8.7", "99999.5", "-1.-1"),
)
DRIVERS = ("570.124.06", "535.54.03", "470.57", "999999999999.1", "", "\udcff", "v1", "535", "\x07")
_SIZE_FACTS = ("memory_total", "memory_used", "memory_reserved")
_FACTS: dict[str, Callable[[random.Random, int], str]] = {
    "uuid": lambda dice, index: f"GPU-{index:08x}-fa4e-4000-8000-{dice.randrange(1 << 20):012x}",
    "name": lambda dice, _: dice.choice(("NVIDIA H100 80GB HBM3", "Tesla T4", "NVIDIA GeForce RTX 4090")),
    "memory_total": lambda dice, _: str(dice.choice((16, 24, 80)) << 30),
    "memory_used": lambda dice, _: str(dice.randrange(1 << 34)),
    "memory_reserved": lambda dice, _: str(dice.randrange(1 << 30)),
    "utilization": lambda dice, _: str(dice.randrange(101)),
    "memory_utilization": lambda dice, _: str(dice.randrange(101)),
    "temperature": lambda dice, _: str(dice.randrange(95)),
    "power_mw": lambda dice, _: str(dice.randrange(700_000)),
    "power_limit_mw": lambda _dice, _index: "700000",
    "clock_sm_mhz": lambda dice, _: str(dice.randrange(2_000)),
    "clock_memory_mhz": lambda _dice, _index: "2619",
    "compute_capability": lambda dice, _: dice.choice(("9.0", "7.5", "8.9")),
    "pci_bus_id": lambda _dice, index: f"00000000:{0x1A + index:02X}:00.0",
    "ecc_uncorrected": lambda dice, _: str(dice.randrange(3)),
    "energy_mj": lambda dice, _: str(dice.randrange(1 << 40)),
    "retired_pages_pending": lambda dice, _: str(dice.randrange(2)),
    "remapped_rows": lambda dice, _: f"0 0 {dice.randrange(2)} {dice.randrange(2)}",
    "clocks_event_reasons": lambda dice, _: str(dice.randrange(0x800)),
    "mig": lambda dice, _: dice.choice("0001"),
    "mig_slots": lambda _dice, _index: "7",
    "recovery_action": lambda dice, _: str(dice.randrange(7)),
    "sram_threshold_exceeded": lambda dice, _: dice.choice("0001"),
    "compute_mode": lambda dice, _: dice.choice("00023"),
    "fabric": lambda dice, _: f"{dice.choice('0123333')} {dice.choice('0001')} {dice.randrange(1 << 16):#x}",
    "nvlinks": lambda dice, _: dice.choice(("0", "4", "18", "18")),
    "nvlinks_down": lambda dice, _: str(dice.choice((0, 0, 2))),
    "nvlink_recoveries_total": lambda dice, _: dice.choice(("0", "3", "error UNKNOWN")),
    "nvlink_errors_total": lambda dice, _: dice.choice(("0", "7", "error NOT_SUPPORTED", "error UNKNOWN")),
    "nvlink_errors": lambda dice, _: str(dice.randrange(3)),
    "pcie_generation": lambda dice, _: dice.choice("12345"),
    "pcie_generation_max": lambda _dice, _index: "5",
    "pcie_width": lambda dice, _: dice.choice(("1", "8", "16")),
    "pcie_width_max": lambda _dice, _index: "16",
    "pcie_replays": lambda dice, _: str(dice.choice((0, 3, 2**32 - 1))),
}
RARELY, FEW, SOME, HALF = 0.004, 0.02, 0.1, 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine's lines, and what a reader of it must be ready for."""

    lines: tuple[str, ...]
    may_end: bool
    """A call of it may crash or exit."""
    may_hang: bool


def machine(dice: random.Random) -> Machine:
    """Draw one machine."""
    gpus = dice.choice((0, 1, 1, 2, 4, 8))
    faults = tuple(_faults(dice, gpus))
    kinds = {line.partition(" ")[0] for line in faults}
    devices = chain.from_iterable(_device(dice, index) for index in range(gpus))
    return Machine(
        lines=(*_machine_facts(dice, gpus), *devices, *faults),
        may_end=bool(kinds & {"crash", "exit"}),
        may_hang="hang" in kinds,
    )


def _machine_facts(dice: random.Random, gpus: int) -> Iterator[str]:
    wild = dice.choice((*NUMBERS[:3], *NUMBERS[5:])) if dice.random() < RARELY else str(gpus)
    yield f"count {wild}"
    yield f"driver_version {dice.choice(DRIVERS) if dice.random() < HALF else DRIVERS[0]}"
    yield f"cuda_version {dice.choice(NUMBERS) if dice.random() < SOME else '12080'}"


def _device(dice: random.Random, index: int) -> Iterator[str]:
    yield from _facts(dice, str(index), index)
    for _ in range(dice.choice((0, 0, 1, 3, 40)) if dice.random() < HALF else 0):
        yield f"process {index} {dice.choice((1, dice.randrange(1 << 22)))} {dice.choice(NUMBERS)}"
    for slot in range(8):
        if dice.random() < HALF:
            yield f"mig_device {index}/{slot} {7 + slot} 0"
            yield from _facts(dice, f"{index}/{slot}", 100 + 10 * index + slot)
    if dice.random() < SOME:
        yield f"xid {index} {dice.choice((13, 31, 48, 63, 79, 94, 119, 4_000_000_000, 0))}"
    if dice.random() < SOME:
        yield f"delivered_to {index} {dice.randrange(8)}"
        yield f"xid {dice.choice((index, f'{index}/{dice.randrange(8)}', 9))} 154"


def _facts(dice: random.Random, device: str, index: int) -> Iterator[str]:
    """State what a device answers: mostly sense, at times nothing, at times nonsense."""
    for key, sensible in _FACTS.items():
        luck = dice.random()
        if luck < SOME / 2:
            continue
        if luck < SOME:
            yield f"{key} {device} {dice.choice(NUMBERS if key in _SIZE_FACTS else (*NUMBERS, *TEXTS))}"
        else:
            yield f"{key} {device} {sensible(dice, index)}"


def _faults(dice: random.Random, gpus: int) -> Iterator[str]:
    for _ in range(dice.choice((0, 0, 1, 1, 2, 5))):
        yield f"error {dice.choice(CALLS)} {_place(dice, gpus)} {dice.choice(CODES)}"
    if dice.random() < SOME:
        yield f"print {dice.choice(CALLS)} {_place(dice, gpus)} " + '{"id": 1, "outcome": "ok"}'
    if dice.random() < SOME:
        yield f"complain {dice.choice(CALLS)} {_place(dice, gpus)} vendor library: giving up"
    if dice.random() < FEW:
        yield f"delay {dice.choice(CALLS[1:])} {_place(dice, gpus)} {dice.randrange(1, 8)}"
    for kind, more in (("crash", ""), ("exit", " 1"), ("hang", "")):
        if dice.random() < SOME / 2:
            yield f"{kind} {dice.choice(CALLS[1:])} {_place(dice, gpus)}{more}"


def _place(dice: random.Random, gpus: int) -> str:
    whole: Sequence[str] = [str(index) for index in range(gpus)]
    return dice.choice(("*", "*", *whole, *(f"{one}/{dice.randrange(7)}" for one in whole)))
