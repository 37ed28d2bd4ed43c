"""Intel's GPUs, as far as the drivers `xe` and `i915` report them in sysfs: the collector `intel`.

Sensors are those of `Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon` and `-i915-hwmon` of the kernel.
Neither driver says there how busy a GPU is, which programs use it, or how much memory is in use. A GPU that
is part of the processor sits at `0000:00:02.0`, wherever Intel made one; in a virtual machine a card may sit
there too, which has memory of its own or a known id.
"""

from collections.abc import Mapping
from pathlib import Path

from gpu_agent.probe import pci
from gpu_agent.probe.collectors.protocol import INTERFACE, Surroundings
from gpu_agent.probe.collectors.sysfs import (
    ASLEEP,
    FALLEN,
    LIVE_USE,
    MICRO,
    MILLI,
    CardFolder,
    FigureFile,
    PciBus,
    drm_cards,
    link_target_name,
    list_folder,
    not_offered,
    read_failure,
    read_number,
    tenths,
    uuid_by_address,
)
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.wire.inventory import Gpu, GpuReport, HealthReason, MemoryKind, Outcome

DRIVERS = ("xe", "i915")
VENDOR = pci.INTEL
_INTEGRATED = "00:02.0"
_NAMES: Mapping[int, str] = {
    0x0BD5: "Intel Data Center GPU Max 1550",
    0x0BD6: "Intel Data Center GPU Max 1550",
    0x0BD9: "Intel Data Center GPU Max 1100",
    0x0BDA: "Intel Data Center GPU Max 1100",
    0x0BDB: "Intel Data Center GPU Max 1100",
    0x56A0: "Intel Arc A770",
    0x56A1: "Intel Arc A750",
    0x56A2: "Intel Arc A580",
    0x56A5: "Intel Arc A380",
    0x56A6: "Intel Arc A310",
    0x56B1: "Intel Arc Pro A40/A50",
    0x56C0: "Intel Data Center GPU Flex 170",
    0x56C1: "Intel Data Center GPU Flex 140",
    0xE20B: "Intel Arc B580",
    0xE20C: "Intel Arc B570",
    0xE211: "Intel Arc Pro B60",
    0xE212: "Intel Arc Pro B50",
}
"""PCI device id → name, as the PCI ID repository (pci-ids.ucw.cz) has it; others go by their id."""

_FILES: Mapping[str, FigureFile] = {
    "temperature_c": FigureFile(("temp2_input", "temp1_input"), MILLI, hwmon=True, labels=("pkg",)),
    "power_limit_w": FigureFile(("power1_max", "power2_max"), MICRO, tenths, hwmon=True),
    "energy_mj": FigureFile(("energy1_input", "energy2_input"), MILLI, int, hwmon=True),
}
_CLOCKS = (Path("device", "tile0", "gt0", "freq0", "act_freq"), Path("gt_act_freq_mhz"))
"""From the card's folder: of `xe`, of `i915`. MHz."""
_LIVE = (*_FILES, "clock_sm_mhz")


class IntelGpus:
    """Every GPU of Intel's that one of the drivers has."""

    interface = INTERFACE

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._bus = PciBus(surroundings.sys_dir, VENDOR)

    def read(self, deadline_seconds: float) -> GpuReport:  # noqa: ARG002 - sysfs answers or hangs
        """Read all cards, in the order of their PCI addresses."""
        try:
            cards = sorted(drm_cards(self._surroundings.sys_dir, DRIVERS), key=lambda card: card[1].name)
        except OSError as error:
            return GpuReport(
                outcome=Outcome.DRIVER_BROKEN,
                detail=f"Intel's GPUs cannot be listed ({error}): give the agent read access to sysfs.",
            )
        gpus = tuple(
            _read(card, device, index=index, surroundings=self._surroundings)
            for index, (card, device) in enumerate(cards)
        )
        bare = next(filter(_is_bare, self._bus.gpus()), None)
        if bare is not None and not gpus:
            return GpuReport(
                outcome=Outcome.NO_DRIVER,
                detail=f"The Intel GPU at {bare.name} has no driver: load it with `modprobe xe` (`i915` for "
                "older ones), and see `dmesg` if it will not load.",
            )
        return GpuReport(outcome=Outcome.OK, detail=not_offered(gpus), gpus=gpus)


def _read(card: Path, device: Path, *, index: int, surroundings: Surroundings) -> Gpu:
    """Read a card; of a suspended one nothing that would wake it."""
    folder = CardFolder(device, _FILES, _LIVE)
    memory_mb = _memory_mb(card, device)
    integrated = _is_integrated(device, memory_mb=memory_mb)
    asleep = folder.asleep
    reasons: tuple[HealthReason, ...] = ()
    figures: dict[str, object] = {}
    if asleep or folder.off_the_bus:
        folder.unread(ASLEEP if asleep else FALLEN)
        reasons = () if asleep else (reason("gpu_lost", detail=FALLEN),)
    else:
        figures = {**folder.figures(), "clock_sm_mhz": _clock(card, folder)}
    folder.unknowns |= dict.fromkeys(LIVE_USE, "neither `xe` nor `i915` reports it in sysfs")
    if memory_mb is None:
        folder.unknowns["memory_mb"] = (
            "it shares the machine's" if integrated else "its driver does not report it in sysfs"
        )
    number = read_number(device / "device", base=16)
    return Gpu(
        uuid=uuid_by_address("INTEL", device.name, surroundings),
        name=_NAMES.get(number or 0) or ("Intel GPU" if number is None else f"Intel GPU 8086:{number:04x}"),
        index=index,
        vendor="intel",
        pci_bus_id=device.name,
        memory_mb=memory_mb,
        memory_kind=MemoryKind.UNIFIED
        if integrated
        else MemoryKind.DEDICATED
        if memory_mb
        else MemoryKind.UNKNOWN,
        health=health_from(reasons),
        reasons=reasons,
        asleep=asleep or (None if reasons else False),
        offered=surroundings.offer_integrated_gpus or not integrated,
        unknowns=folder.unknowns,
        **figures,  # type: ignore[arg-type]  # names and types are those of `_FILES`
    )


def _is_bare(device: Path) -> bool:
    """Whether it is a card without a driver; a processor's graphics need none."""
    return not link_target_name(device / "driver") and not _is_integrated(device, memory_mb=None)


def _is_integrated(device: Path, *, memory_mb: int | None) -> bool:
    """Whether it is part of the processor; `memory_mb` is what its driver states as its own."""
    return (
        device.name.endswith(_INTEGRATED)
        and memory_mb is None
        and read_number(device / "device", base=16) not in _NAMES
    )


def _clock(card: Path, folder: CardFolder) -> int | None:
    for path in _CLOCKS:
        mhz = read_number(card / path)
        if mhz is not None and mhz >= 0:
            return mhz
    folder.unknowns["clock_sm_mhz"] = read_failure(card / _CLOCKS[-1])
    return None


def _memory_mb(card: Path, device: Path) -> int | None:
    """Of `xe` the sum of its tiles; `i915` reports it only as Intel ships it, not as Linux does."""
    tiles = [
        size
        for tile in list_folder(device)
        if tile.name.startswith("tile")
        and (size := read_number(tile / "physical_vram_size_bytes")) is not None
    ]
    size = sum(tiles) if tiles else read_number(card / "lmem_total_bytes")
    return size >> 20 if size is not None and size >> 20 > 0 else None
