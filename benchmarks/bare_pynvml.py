"""The least that can be done: NVML's binding reads all GPUs and prints JSON. A baseline of `probe_wall.py`.

Each reading is attempted as ours are: what the driver does not support is null.
"""

import json
from collections.abc import Callable, Iterator

import pynvml as nvml


def readings(gpu: object) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name each reading of a GPU."""
    yield "uuid", lambda: nvml.nvmlDeviceGetUUID(gpu)
    yield "name", lambda: nvml.nvmlDeviceGetName(gpu)
    yield "pci", lambda: nvml.nvmlDeviceGetPciInfo(gpu).busId
    yield "compute_capability", lambda: nvml.nvmlDeviceGetCudaComputeCapability(gpu)
    yield "memory", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used
    yield "utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
    yield "temperature", lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
    yield "power", lambda: nvml.nvmlDeviceGetPowerUsage(gpu)
    yield "power_limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    yield "clock_sm", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
    yield "clock_memory", lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)
    yield "energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    yield "ecc", lambda: nvml.nvmlDeviceGetTotalEccErrors(gpu, 1, 0)
    yield "remapped_rows", lambda: nvml.nvmlDeviceGetRemappedRows(gpu)
    yield "throttling", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    yield "mig", lambda: nvml.nvmlDeviceGetMigMode(gpu)
    yield "processes", lambda: [one.pid for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]


def read(reading: Callable[[], object]) -> object:
    """Read one value; None where the driver does not have it."""
    try:
        return reading()
    except nvml.NVMLError:
        return None


nvml.nvmlInit()
gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
print(json.dumps([{name: read(reading) for name, reading in readings(gpu)} for gpu in gpus], default=str))
