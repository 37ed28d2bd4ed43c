"""AMD GPUs, through what the `amdgpu` kernel driver tells in sysfs: the collector `amd`.

It finds the cards and says who they are; `amd_card` reads one. It needs no library and no tool of the
vendor's, writes nothing, and wakes no GPU that sleeps. Cards that another driver has, such as one
handed to a virtual machine, are not ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gpu_agent.probe.amd_card import Card
from gpu_agent.probe.collectors import INTERFACE, Surroundings
from gpu_agent.probe.sysfs import linked_name, number, text
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

DRIVER = "amdgpu"
VENDOR = 0x1002
NAMES = Path("/usr/share/libdrm/amdgpu.ids")
"""Which product a device id and revision are, as libdrm ships it; many machines have it."""
_CARD = re.compile(r"card[0-9]+")
_DISPLAY_CLASSES = (0x03, 0x12)
"""PCI base classes: a display controller, a processing accelerator."""
_LONGEST_NAMES_BYTES = 1 << 20


class AmdGpus:
    """Every card that the driver has. Of one reading it remembers for the next what does not change."""

    interface = INTERFACE

    def __init__(self, surroundings: Surroundings, *, names: Path = NAMES) -> None:
        self._sys_dir = surroundings.sys_dir
        self._names = names
        self._products: dict[tuple[int, int], str] | None = None
        self._listed: tuple[str, ...] = ()
        self._ours: tuple[Path, ...] = ()
        """Of the devices that were listed on the PCI bus, those that are AMD GPUs."""

    def read(self, deadline_seconds: float) -> GpuReport:  # noqa: ARG002 - sysfs answers or hangs
        """Read them, in the order of their places on the PCI bus."""
        try:
            places = sorted(set(self._cards()))
        except OSError as error:
            return GpuReport(
                outcome=Outcome.DRIVER_BROKEN,
                detail=f"The AMD cards cannot be listed ({error}): give the agent read access to sysfs.",
            )
        if not places:
            return self._nothing()
        if self._products is None:
            self._products = products(self._names)
        gpus = _told_apart(
            Card(place, index, products=self._products).gpu() for index, place in enumerate(places)
        )
        version = text(self._sys_dir / "module" / DRIVER / "version")
        return GpuReport(
            outcome=Outcome.OK, gpus=gpus, driver_version=f"{DRIVER} {version}" if version else None
        )

    def _cards(self) -> Iterator[Path]:
        """The devices of all cards that the driver has, each under its name on the PCI bus."""
        drm = self._sys_dir / "class" / "drm"
        if not drm.is_dir():
            return
        for entry in drm.iterdir():
            device = entry / "device"
            if _CARD.fullmatch(entry.name) and linked_name(device / "driver") == DRIVER:
                yield device.resolve()

    def _nothing(self) -> GpuReport:
        """No card: the machine has none, or one that lacks its driver."""
        bare = next(self._without_driver(), None)
        if bare is None:
            return GpuReport(outcome=Outcome.OK)
        return GpuReport(
            outcome=Outcome.NO_DRIVER,
            detail=f"The AMD GPU at {bare} has no driver: load it with `modprobe {DRIVER}`, "
            "and see `dmesg` if it will not load.",
        )

    def _without_driver(self) -> Iterator[str]:
        bus = self._sys_dir / "bus" / "pci" / "devices"
        listed = tuple(sorted(device.name for device in bus.iterdir())) if bus.is_dir() else ()
        if listed != self._listed:  # what a device is does not change; a server has hundreds
            self._ours = tuple(bus / name for name in listed if _is_amd_gpu(bus / name))
            self._listed = listed
        return (device.name for device in self._ours if not linked_name(device / "driver"))


def _told_apart(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """Name cards by their slots where their driver gives several the same id."""
    read = tuple(gpus)
    told = Counter(gpu.uuid for gpu in read)
    return tuple(gpu if told[gpu.uuid] == 1 else replace(gpu, uuid=f"AMD-{gpu.pci_bus_id}") for gpu in read)


def _is_amd_gpu(device: Path) -> bool:
    kind = number(device / "class", base=16)
    return (
        kind is not None and kind >> 16 in _DISPLAY_CLASSES and number(device / "vendor", base=16) == VENDOR
    )


def products(names: Path) -> dict[tuple[int, int], str]:
    """Read libdrm's table: device id and revision → product. Empty where it is not there."""
    table: dict[tuple[int, int], str] = {}
    for line in (text(names, longest_bytes=_LONGEST_NAMES_BYTES) or "").splitlines():
        device, _, rest = line.partition(",")
        revision, _, name = rest.partition(",")
        try:
            table[int(device, 16), int(revision, 16)] = name.strip()
        except ValueError:
            continue  # a comment, or the version of the table
    return table
