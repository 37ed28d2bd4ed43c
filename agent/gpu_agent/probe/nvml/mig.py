"""The MIG slices of one GPU: each is read as a device of its own that has less to tell.

A slot that holds no slice is passed over: slices need not be in a row. What a slice does not
tell (heat, power, use) is its GPU's to tell, never copied. It keeps nothing: an owner may cut
a GPU anew at any moment.
"""

from functools import partial
from types import ModuleType

from gpu_agent.probe.nvml import memory as nvml_memory
from gpu_agent.probe.nvml import processes as nvml_processes
from gpu_agent.probe.nvml.errors import (
    Getter,
    Values,
    is_driver_wide,
    raise_if_gone,
    run_getters,
    unknown_reason,
)
from gpu_agent.probe.nvml.readings import OF_THE_WHOLE_GPU, read_name, read_uuid
from gpu_agent.probe.stand_in import UNIDENTIFIED

_MOST_SLOTS = 64
"""No GPU has more; a driver that says so is not believed."""

_SHARED = ("compute_capability", "pci_bus_id")
"""What a slice has from the GPU that it is cut from, or does not have for the same reason."""

_TOLD_OF_THE_GPU = "told of the whole GPU, not of one slice"


def read_mig_devices(
    nvml: ModuleType, handle: object, *, parent: Values, driver_version: object
) -> tuple[list[Values], dict[str, str]]:
    """Read every slice, and say of what could not be read why not.

    Raises:
        GpuGoneError: the whole GPU is lost.
        NVMLError: the whole driver has failed.
    """
    try:
        slots = min(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)), _MOST_SLOTS)
    except nvml.NVMLError as error:
        return [], {"slices": _unknown_reason(nvml, error, "counting its MIG slots")}
    found: list[Values] = []
    unread: list[str] = []
    for slot in range(slots):
        try:
            slice_ = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError_NotFound:
            continue
        except nvml.NVMLError as error:
            unread.append(f"slot {slot}: {_unknown_reason(nvml, error, 'opening a MIG slice')}")
            continue
        found.append(_described(nvml, slice_, slot=slot, parent=parent, driver_version=driver_version))
    return found, {"slices": "; ".join(unread)} if unread else {}


def _unknown_reason(nvml: ModuleType, error: object, doing: str) -> str:
    """Say why, unless the error is more than this call's."""
    if isinstance(error, BaseException) and is_driver_wide(nvml, error):
        raise error
    raise_if_gone(nvml, error, doing)
    return unknown_reason(nvml, error)


def _described(
    nvml: ModuleType, handle: object, *, slot: int, parent: Values, driver_version: object
) -> Values:
    getters: tuple[Getter, ...] = (
        (("uuid",), read_uuid),
        (("name",), read_name),
        (nvml_memory.FIELDS, partial(nvml_memory.memory, unified=False, meminfo="")),
        (("processes",), partial(nvml_processes.processes, driver_version=driver_version)),
        (("gpu_instance", "compute_instance"), _instance),
    )
    values = run_getters(nvml, handle, getters)
    unknowns = values["unknowns"] if isinstance(values["unknowns"], dict) else {}
    ids = values.get("gpu_instance"), values.get("compute_instance")
    whose = parent.get("uuid") or f"{UNIDENTIFIED}{parent['index']}"
    if not values.get("uuid"):
        values["uuid"] = f"MIG-{whose}/{ids[0]}/{ids[1]}" if None not in ids else f"MIG-{whose}/slot-{slot}"
    if not values.get("name"):
        values["name"] = f"MIG slice of {parent.get('name') or whose}"
    told = parent.get("unknowns")
    untold = told if isinstance(told, dict) else {}
    hidden = {"gpu_instance", "compute_instance"}
    return {
        **{name: parent[name] for name in _SHARED if name in parent},
        **values,
        "index": parent["index"],
        "parent_uuid": whose,
        "reasons": [],
        "unknowns": {
            **dict.fromkeys(OF_THE_WHOLE_GPU, _TOLD_OF_THE_GPU),
            **{name: untold[name] for name in _SHARED if name in untold},
            **{name: why for name, why in unknowns.items() if name not in hidden},
        },
    }


def _instance(nvml: ModuleType, handle: object) -> Values:
    return {
        "gpu_instance": nvml.nvmlDeviceGetGpuInstanceId(handle),
        "compute_instance": nvml.nvmlDeviceGetComputeInstanceId(handle),
    }
