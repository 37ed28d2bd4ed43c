"""Which GPUs `CUDA_VISIBLE_DEVICES` shows to programs, as the CUDA runtime reads it.

A list of indices, UUIDs, beginnings of UUIDs or MIG ids; what comes after the first that names
nothing is ignored. The result stands beside each GPU and decides nothing: the UUID is the key of a GPU. Where
CUDA's own order of GPUs cannot be known, `visible` is unknown.
"""

import re
from collections.abc import Mapping, Sequence

from gpu_agent.probe.nvml.errors import Values

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NUMBER = re.compile(r"\+?0*([0-9]+)")
_INDEX_DIGITS = 6
"""More than any machine's indices have."""
_ORDER = "CUDA_DEVICE_ORDER"
_UNKNOWN_ORDER = (
    f"{VARIABLE} names indices, and CUDA counts unlike GPUs from the fastest on: set {_ORDER}=PCI_BUS_ID"
)


def mark(gpus: Sequence[Values], environ: Mapping[str, str]) -> None:
    """Write `visible` into each GPU and MIG device, or why it is unknown.

    Nothing where the variable is not set.
    """
    listed = environ.get(VARIABLE)
    if listed is None:
        return
    names = [name.strip() for name in listed.split(",")]
    if _index(names[0]) is not None and not _order_is_known(gpus, environ):
        for gpu in gpus:
            unknowns = gpu.get("unknowns")
            gpu["unknowns"] = {**(unknowns if isinstance(unknowns, dict) else {}), "visible": _UNKNOWN_ORDER}
        return
    shown = _shown(names, gpus)
    for position, gpu in enumerate(gpus):
        gpu["visible"] = position in shown


def _order_is_known(gpus: Sequence[Values], environ: Mapping[str, str]) -> bool:
    """NVML counts by bus id; so does CUDA where its order is set to that, or where all GPUs are alike."""
    kinds = {(gpu.get("name"), gpu.get("memory_mb")) for gpu in gpus if not gpu.get("parent_uuid")}
    return environ.get(_ORDER) == "PCI_BUS_ID" or len(kinds) <= 1


def _shown(names: Sequence[str], gpus: Sequence[Values]) -> set[int]:
    """Give the positions that are shown: none at all when one is named twice, as CUDA has it."""
    by_index = _index(names[0]) is not None
    shown: list[int] = []
    for name in names:
        found = _at_index(name, gpus) if by_index else _of_uuid(name, gpus)
        if found is None:
            break
        if found in shown:
            return set()
        shown.append(found)
    return {position for found in shown for position in _with_first_mig_device(found, gpus)}


def _at_index(name: str, gpus: Sequence[Values]) -> int | None:
    whole = [position for position, gpu in enumerate(gpus) if not gpu.get("parent_uuid")]
    index = _index(name)
    return whole[index] if index is not None and index < len(whole) else None


def _index(name: str) -> int | None:
    """Read a number as C does, whatever stands behind it."""
    found = _NUMBER.match(name)
    return None if found is None else int(found[1][:_INDEX_DIGITS])


def _of_uuid(name: str, gpus: Sequence[Values]) -> int | None:
    """Find the one GPU or MIG device whose UUID begins so."""
    if not name.startswith(("GPU-", "MIG-")):
        return None
    found = [position for position, gpu in enumerate(gpus) if any(one.startswith(name) for one in _ids(gpu))]
    return found[0] if len(found) == 1 else None


def _ids(gpu: Values) -> list[str]:
    """The ids of a GPU: its UUID, and for a MIG device its instances too, as drivers before 470 had them."""
    parent, uuid = gpu.get("parent_uuid"), gpu.get("uuid")
    ids = [str(uuid)] if uuid else []
    if parent and "gpu_instance" in gpu:
        ids.append(f"MIG-{parent}/{gpu['gpu_instance']}/{gpu.get('compute_instance')}")
    return ids


def _with_first_mig_device(position: int, gpus: Sequence[Values]) -> list[int]:
    """CUDA uses the first MIG device of a GPU in MIG mode that is listed as a whole."""
    following = position + 1
    is_whole = not gpus[position].get("parent_uuid")
    if is_whole and following < len(gpus) and gpus[following].get("parent_uuid"):
        return [position, following]
    return [position]
