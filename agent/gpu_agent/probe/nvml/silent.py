"""Where in the driver's list the GPUs are that must not be asked, found without asking them.

A GPU whose own processor failed hangs each question, also the one for its handle, and hangs it for
every new process. The kernel's list of the driver's GPUs says which place is whose, as the driver
counts by PCI address. Where that list does not fit the driver's count, a GPU is taken to be where it
was; this module opens no library and refuses to find out by trying.
"""

import os
import re
from collections.abc import Mapping

from gpu_agent.probe.nvml.answers import Values

_BUS_ID = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")

_Address = tuple[int, ...]


def places(silent: Mapping[str, Values], count: int, *, root: str = "/") -> dict[int, Values]:
    """Say which of so many places hold a silent GPU, each known by its `index` and `pci_bus_id` of before."""
    listed = _listed(root) if silent else []
    found: dict[int, Values] = {}
    for who in silent.values():
        address = _address(who.get("pci_bus_id"))
        if len(listed) == count and address is not None:
            if address in listed:
                found[listed.index(address)] = who
            continue
        place = who.get("index")
        if isinstance(place, int) and place < count:
            found[place] = who
    return found


def _listed(root: str) -> list[_Address]:
    """The addresses of the driver's GPUs in its own order."""
    try:
        names = os.listdir(f"{root.rstrip('/')}/proc/driver/nvidia/gpus")  # noqa: PTH208 - pathlib weighs
    except OSError:
        return []
    return sorted(address for name in names if (address := _address(name)) is not None)


def _address(bus_id: object) -> _Address | None:
    found = _BUS_ID.fullmatch(str(bus_id or "").lower())
    return None if found is None else tuple(int(part, 16) for part in found.groups())
