"""The MIG devices of one GPU: each is read as a device of its own that reports fewer values.

An empty slot is skipped: MIG devices need not be in a row. What a MIG device does not report (temperature,
power, use) is its GPU's value and is never copied. Nothing is remembered: an administrator may repartition a
GPU at any moment.
"""

from functools import partial
from types import ModuleType

from gpu_agent.probe.nvml import memory, processes
from gpu_agent.probe.nvml.errors import Values, is_driver_wide, raise_if_gone, unknown_reason
from gpu_agent.probe.nvml.readings import OF_THE_WHOLE_GPU, Getter, read_name, read_uuid, run_getters
from gpu_agent.probe.stand_in import UNIDENTIFIED

_MOST_SLOTS = 64
"""No GPU has more; a driver that says so is not believed."""

_SHARED = ("compute_capability", "pci_bus_id")
"""What a MIG device has from its GPU, or does not have for the same reason."""

_REPORTED_BY_THE_GPU = "reported for the whole GPU, not for one MIG device"


def read_mig_devices(
    nvml: ModuleType, handle: object, *, parent: Values, driver_version: object
) -> tuple[list[Values], dict[str, str]]:
    """Read every MIG device of a GPU, and say why for those that could not be read.

    Raises:
        GpuGoneError: the whole GPU is lost.
        NVMLError: the whole driver has failed.
    """
    try:
        slots = min(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)), _MOST_SLOTS)
    except nvml.NVMLError as error:
        return [], {"mig_devices": _reason(nvml, error, "counting its MIG slots")}
    found: list[Values] = []
    unread: list[str] = []
    for slot in range(slots):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError_NotFound:
            continue
        except nvml.NVMLError as error:
            unread.append(f"slot {slot}: {_reason(nvml, error, 'opening a MIG device')}")
            continue
        found.append(_read(nvml, device, slot=slot, parent=parent, driver_version=driver_version))
    return found, {"mig_devices": "; ".join(unread)} if unread else {}


def _reason(nvml: ModuleType, error: object, doing: str) -> str:
    """Say why one call failed; raises when the error concerns the whole GPU or driver."""
    if isinstance(error, BaseException) and is_driver_wide(nvml, error):
        raise error
    raise_if_gone(nvml, error, doing)
    return unknown_reason(nvml, error)


def _read(nvml: ModuleType, handle: object, *, slot: int, parent: Values, driver_version: object) -> Values:
    getters: tuple[Getter, ...] = (
        (("uuid",), read_uuid),
        (("name",), read_name),
        (memory.FIELDS, partial(memory.read_memory, unified=False, meminfo="")),
        (("processes",), partial(processes.read_processes, driver_version=driver_version)),
        (("gpu_instance", "compute_instance"), _instances),
    )
    values = run_getters(nvml, handle, getters)
    unknowns = values["unknowns"] if isinstance(values["unknowns"], dict) else {}
    of_parent = parent.get("unknowns")
    parent_unknowns = of_parent if isinstance(of_parent, dict) else {}
    parent_uuid = parent.get("uuid") or f"{UNIDENTIFIED}{parent['index']}"
    ids = values.get("gpu_instance"), values.get("compute_instance")
    if not values.get("uuid"):
        path = f"{ids[0]}/{ids[1]}" if None not in ids else f"slot-{slot}"
        values["uuid"] = f"MIG-{parent_uuid}/{path}"
    if not values.get("name"):
        values["name"] = f"MIG device of {parent.get('name') or parent_uuid}"
    return {
        **{name: parent[name] for name in _SHARED if name in parent},
        **values,
        "index": parent["index"],
        "parent_uuid": parent_uuid,
        "reasons": [],
        "unknowns": {
            **dict.fromkeys(OF_THE_WHOLE_GPU, _REPORTED_BY_THE_GPU),
            **{name: parent_unknowns[name] for name in _SHARED if name in parent_unknowns},
            **{name: why for name, why in unknowns.items() if name != "compute_instance"},
        },
    }


def _instances(nvml: ModuleType, handle: object) -> Values:
    return {
        "gpu_instance": nvml.nvmlDeviceGetGpuInstanceId(handle),
        "compute_instance": nvml.nvmlDeviceGetComputeInstanceId(handle),
    }
