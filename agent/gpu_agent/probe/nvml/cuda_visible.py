"""Which GPUs `CUDA_VISIBLE_DEVICES` shows to programs, as the CUDA runtime reads it.

A list of places, UUIDs, beginnings of UUIDs or MIG ids; what comes after the first that names
nothing is not read. It is told beside each GPU and decides nothing: GPUs go by their UUID. Where CUDA's own
order of GPUs cannot be known, it refuses to guess.
"""

import re
from collections.abc import Mapping, Sequence

from gpu_agent.probe.nvml.errors import Values

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NUMBER = re.compile(r"\+?0*([0-9]+)")
_PLACE_DIGITS = 6
"""More than any machine's places take."""
_ORDER = "CUDA_DEVICE_ORDER"
_UNKNOWN_ORDER = (
    f"{VARIABLE} names places, and CUDA counts unlike GPUs from the fastest on: set {_ORDER}=PCI_BUS_ID"
)


def mark(gpus: Sequence[Values], environ: Mapping[str, str]) -> None:
    """Write `visible` into each GPU and slice, or why it is not known; nothing where none is set."""
    listed = environ.get(VARIABLE)
    if listed is None:
        return
    names = [name.strip() for name in listed.split(",")]
    if _place(names[0]) is not None and not _order_is_known(gpus, environ):
        for gpu in gpus:
            unknowns = gpu.get("unknowns")
            gpu["unknowns"] = {**(unknowns if isinstance(unknowns, dict) else {}), "visible": _UNKNOWN_ORDER}
        return
    shown = _shown(names, gpus)
    for position, gpu in enumerate(gpus):
        gpu["visible"] = position in shown


def _order_is_known(gpus: Sequence[Values], environ: Mapping[str, str]) -> bool:
    """NVML counts by bus id; CUDA does so too when told to, or where all GPUs are alike."""
    kinds = {(gpu.get("name"), gpu.get("memory_mb")) for gpu in gpus if not gpu.get("parent_uuid")}
    return environ.get(_ORDER) == "PCI_BUS_ID" or len(kinds) <= 1


def _shown(names: Sequence[str], gpus: Sequence[Values]) -> set[int]:
    """Give the positions that are shown: none at all when one is named twice, as CUDA has it."""
    by_place = _place(names[0]) is not None
    shown: list[int] = []
    for name in names:
        found = _at_place(name, gpus) if by_place else _of_uuid(name, gpus)
        if found is None:
            break
        if found in shown:
            return set()
        shown.append(found)
    return {position for found in shown for position in _with_its_first_slice(found, gpus)}


def _at_place(name: str, gpus: Sequence[Values]) -> int | None:
    whole = [position for position, gpu in enumerate(gpus) if not gpu.get("parent_uuid")]
    place = _place(name)
    return whole[place] if place is not None and place < len(whole) else None


def _place(name: str) -> int | None:
    """Read a number as C does, whatever stands behind it."""
    found = _NUMBER.match(name)
    return None if found is None else int(found[1][:_PLACE_DIGITS])


def _of_uuid(name: str, gpus: Sequence[Values]) -> int | None:
    """Find the one GPU or slice whose UUID begins so."""
    if not name.startswith(("GPU-", "MIG-")):
        return None
    found = [position for position, gpu in enumerate(gpus) if any(one.startswith(name) for one in _ids(gpu))]
    return found[0] if len(found) == 1 else None


def _ids(gpu: Values) -> list[str]:
    """Name a GPU by its UUID, and a slice by its instances besides, as drivers before 470 did."""
    parent, uuid = gpu.get("parent_uuid"), gpu.get("uuid")
    told = [str(uuid)] if uuid else []
    if parent and "gpu_instance" in gpu:
        told.append(f"MIG-{parent}/{gpu['gpu_instance']}/{gpu.get('compute_instance')}")
    return told


def _with_its_first_slice(position: int, gpus: Sequence[Values]) -> list[int]:
    """CUDA uses the first slice of a GPU that is cut and shown as a whole."""
    following = position + 1
    is_whole = not gpus[position].get("parent_uuid")
    if is_whole and following < len(gpus) and gpus[following].get("parent_uuid"):
        return [position, following]
    return [position]
