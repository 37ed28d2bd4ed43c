"""PCI devices by their addresses, and their folders in sysfs.

An address is `0000:1a:00.0` as the kernel writes it, or `00000000:1A:00.0` as NVML does. The NVML child loads
this module, so it imports little.
"""

import re

NVIDIA, AMD, INTEL = 0x10DE, 0x1002, 0x8086
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_DISPLAY_CLASSES = (0x03, 0x12)
"""PCI base classes: a display controller, a processing accelerator."""
_NUMBER_CHARS = 16

PciAddress = tuple[int, ...]
"""Domain, bus, device and function; in their order, addresses are sorted as the kernel sorts them."""


def parse_address(address: object) -> PciAddress | None:
    """Return the address in numbers; None for what is no address."""
    found = _ADDRESS.fullmatch(str(address or "").lower())
    return None if found is None else tuple(int(part, 16) for part in found.groups())


def device_folder(sys_dir: str, address: object) -> str | None:
    """Return the folder of the device in sysfs, there or not; None for what is no address."""
    numbers = parse_address(address)
    if numbers is None:
        return None
    domain, bus, device, function = numbers
    return f"{sys_dir}/bus/pci/devices/{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def is_gpu(folder: str, vendor: int) -> bool:
    """Whether the device with this folder is a display controller or an accelerator of the vendor's."""
    kind = _number(f"{folder}/class")
    return kind is not None and kind >> 16 in _DISPLAY_CLASSES and vendor_of(folder) == vendor


def vendor_of(folder: str) -> int | None:
    """The vendor of the device with this folder; None where the kernel does not say."""
    return _number(f"{folder}/vendor")


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return int(file.read(_NUMBER_CHARS), 16)
    except (OSError, ValueError):
        return None
