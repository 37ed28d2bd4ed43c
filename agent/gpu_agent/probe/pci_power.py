"""Whether a PCI device sleeps, by what the kernel says of it, without touching the device.

Asking the driver of a laptop's GPU wakes it, and asked every few seconds it never sleeps again. It
refuses to guess: what the kernel does not call suspended counts as awake.
"""

import re

_BUS_ID = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_STATUS_CHARS = 32


def is_asleep(bus_id: object, *, root: str = "/") -> bool:
    """Tell whether the device at an address, as NVML writes it (`00000000:1A:00.0`), is suspended."""
    found = _BUS_ID.fullmatch(str(bus_id or "").lower())
    if found is None:
        return False
    address = f"{int(found[1], 16):04x}:{found[2]}"
    path = f"{root.rstrip('/')}/sys/bus/pci/devices/{address}/power/runtime_status"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read(_STATUS_CHARS).strip() == "suspended"
    except OSError:
        return False
