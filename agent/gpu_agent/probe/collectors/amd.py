"""AMD GPUs, read from the files of the `amdgpu` kernel driver in sysfs: the collector `amd`.

No library and no vendor tool; nothing is written, and no suspended GPU is woken. A file that is missing,
empty, refused or holds nonsense makes its own value unknown, with the reason. Cards that another driver has,
such as one handed to a virtual machine, are left out.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gpu_agent.probe.collectors.protocol import INTERFACE, Surroundings
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.wire.inventory import Gpu, GpuReport, HealthReason, MemoryKind, Outcome

# AMD GPUs, through what the `amdgpu` kernel driver tells in sysfs: the collector `amd`.
#
# It finds the cards and says who they are; `amd_card` reads one. It needs no library and no tool of the
# vendor's, writes nothing, and wakes no GPU that sleeps. Cards that another driver has, such as one
# handed to a virtual machine, are not ours.


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
            self._products = load_names(self._names)
        gpus = _unique_ids(
            Card(place, index, products=self._products).gpu() for index, place in enumerate(places)
        )
        version = read_text(self._sys_dir / "module" / DRIVER / "version")
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
            if _CARD.fullmatch(entry.name) and link_target_name(device / "driver") == DRIVER:
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
        return (device.name for device in self._ours if not link_target_name(device / "driver"))


def _unique_ids(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """Name cards by their slots where their driver gives several the same id."""
    read = tuple(gpus)
    told = Counter(gpu.uuid for gpu in read)
    return tuple(gpu if told[gpu.uuid] == 1 else replace(gpu, uuid=f"AMD-{gpu.pci_bus_id}") for gpu in read)


def _is_amd_gpu(device: Path) -> bool:
    kind = read_number(device / "class", base=16)
    return (
        kind is not None
        and kind >> 16 in _DISPLAY_CLASSES
        and read_number(device / "vendor", base=16) == VENDOR
    )


def load_names(names: Path) -> dict[tuple[int, int], str]:
    """Read libdrm's table: device id and revision → product. Empty where it is not there."""
    table: dict[tuple[int, int], str] = {}
    for line in (read_text(names, longest_bytes=_LONGEST_NAMES_BYTES) or "").splitlines():
        device, _, rest = line.partition(",")
        revision, _, name = rest.partition(",")
        try:
            table[int(device, 16), int(revision, 16)] = name.strip()
        except ValueError:
            continue  # a comment, or the version of the table
    return table


# One AMD card in sysfs, read file by file: who it is, its figures, and what its driver says is wrong.
#
# A file that is missing, empty, refused or holds nonsense costs its own figure, which is unknown with
# the reason. Of a card that sleeps only those files are read for which the driver does not wake it.
# It never guesses a figure from another.


_MIB = 1 << 20
_MICRO = 1_000_000
_MILLI = 1_000
_TINY_BYTES = 2 << 30
"""No card that is worth a job has so little memory of its own."""
_SLEEPING = "suspended"
_ASLEEP = "the GPU sleeps, and is not woken to be asked"
_FALLEN = "the GPU has fallen off the PCI bus"
_FIGURES = (
    "utilization_percent",
    "memory_utilization_percent",
    "temperature_c",
    "power_w",
    "power_limit_w",
    "clock_sm_mhz",
    "clock_memory_mhz",
    "ecc_uncorrected",
    "retirement_pending",
)
_ABSENT_HERE = {
    "compute_capability": "a measure of NVIDIA's",
    "mig_enabled": "a mode of NVIDIA's",
    "throttle_reasons": "not told in sysfs",
    "processes": "not told in sysfs",
}
_Figure = TypeVar("_Figure", int, float)


class Card:
    """A card's folder in sysfs; made for one reading."""

    def __init__(self, place: Path, index: int, *, products: Mapping[tuple[int, int], str]) -> None:
        self._place = place
        self._index = index
        self._products = products
        self._unknowns = dict(_ABSENT_HERE)
        self._hwmon = next(iter(_folders(place / "hwmon")), place / "hwmon" / "hwmon0")

    def gpu(self) -> Gpu:
        """Read it now."""
        if read_text(self._place / "power" / "runtime_status") == _SLEEPING:
            return self._known((), dict.fromkeys(_FIGURES, _ASLEEP), asleep=True)
        if _is_off_the_bus(self._place):
            return self._known((reason("gpu_lost", detail=_FALLEN),), dict.fromkeys(_FIGURES, _FALLEN))
        bad_pages = tuple(self._bad_pages())
        return self._known(bad_pages, {}, asleep=False, **self._figures(bad_pages))

    def _known(
        self, reasons: tuple[HealthReason, ...], unknowns: Mapping[str, str], **figures: float | bool | None
    ) -> Gpu:
        """Put together what is told at any time with the figures of a card that is awake."""
        memory = self._memory()
        return Gpu(
            uuid=self._uuid(),
            name=self._name(),
            index=self._index,
            vendor="amd",
            pci_bus_id=self._place.name,
            health=health_from(reasons),
            reasons=reasons,
            unknowns={**self._unknowns, **unknowns},
            **memory,  # type: ignore[arg-type]  # names and types are `_memory`'s
            **figures,  # type: ignore[arg-type]  # and `_figures`'
        )

    def _uuid(self) -> str:
        """The driver's own id of the card, which follows it from slot to slot; else its slot."""
        unique = read_number(self._place / "unique_id", base=16)
        return f"AMD-{unique:016x}" if unique else f"AMD-{self._place.name}"

    def _name(self) -> str:
        told = read_text(self._place / "product_name")
        if told:
            return told
        device = read_number(self._place / "device", base=16)
        revision = read_number(self._place / "revision", base=16)
        if device is None:
            return "AMD GPU"
        listed = self._products.get((device, -1 if revision is None else revision))
        return listed or f"AMD GPU 1002:{device:04x}"

    def _memory(self) -> dict[str, object]:
        """Its own memory; of a processor's graphics, whose own is tiny, also what it shares (GTT)."""
        total, used = self._bytes("vram_total"), self._bytes("vram_used")
        shared, shared_used = self._bytes("gtt_total"), self._bytes("gtt_used")
        if not total:
            self._unknowns["memory_mb"] = read_failure(self._place / "mem_info_vram_total")
            return {}
        kind = MemoryKind.DEDICATED
        if total < _TINY_BYTES and shared is not None and shared > total:
            kind, total = MemoryKind.UNIFIED, total + shared
            used = None if used is None or shared_used is None else used + shared_used
        if used is None or used > total:
            self._unknowns["memory_used_mb"] = read_failure(self._place / "mem_info_vram_used")
            return {"memory_kind": kind, "memory_mb": total // _MIB}
        return {
            "memory_kind": kind,
            "memory_mb": total // _MIB,
            "memory_used_mb": used // _MIB,
            "memory_free_mb": (total - used) // _MIB,
        }

    def _bytes(self, name: str) -> int | None:
        value = read_number(self._place / f"mem_info_{name}")
        return value if value is not None and 0 <= value <= 4 << 40 else None

    def _figures(self, bad_pages: tuple[HealthReason, ...]) -> dict[str, float | bool | None]:
        limit = self._asked("power_limit_w", self._hwmon / "power1_cap", _watts)
        pages = read_text(self._place / "ras" / "gpu_vram_bad_pages")
        if pages is None:
            self._unknowns["retirement_pending"] = read_failure(self._place / "ras" / "gpu_vram_bad_pages")
        return {
            "utilization_percent": self._asked(
                "utilization_percent", self._place / "gpu_busy_percent", _percent
            ),
            "memory_utilization_percent": self._asked(
                "memory_utilization_percent", self._place / "mem_busy_percent", _percent
            ),
            "temperature_c": self._asked("temperature_c", self._hwmon / "temp1_input", _celsius),
            "power_w": self._power(),
            "power_limit_w": limit,
            "clock_sm_mhz": self._asked("clock_sm_mhz", self._hwmon / "freq1_input", _megahertz),
            "clock_memory_mhz": self._asked("clock_memory_mhz", self._hwmon / "freq2_input", _megahertz),
            "ecc_uncorrected": self._uncorrected(),
            "retirement_pending": None if pages is None else bool(bad_pages),
        }

    def _power(self) -> float | None:
        """The mean where the driver has one, else the moment's."""
        average = self._hwmon / "power1_average"
        value = read_number(average)
        path = average if value is not None else self._hwmon / "power1_input"
        return self._asked("power_w", path, _watts)

    def _uncorrected(self) -> int | None:
        """Uncorrected memory and block errors since the driver was loaded, over all blocks that count."""
        folder = self._place / "ras"
        counts = [
            count for path in _files(folder, "_err_count") for count in _uncorrectable_errors(read_text(path))
        ]
        if counts:
            return sum(counts)
        self._unknowns["ecc_uncorrected"] = read_failure(folder / "umc_err_count")
        return None

    def _bad_pages(self) -> Iterator[HealthReason]:
        """Pages found bad that are still in use: `P` waits for its turn, `F` could not be set aside."""
        lines = (read_text(self._place / "ras" / "gpu_vram_bad_pages") or "").splitlines()
        waiting = [line for line in lines if line.rpartition(":")[2].strip() in ("P", "F")]
        if waiting:
            yield reason(
                "retired_pages_pending", detail=f"{len(waiting)} bad memory pages are not yet set aside"
            )

    def _asked(self, name: str, path: Path, convert: Callable[[int], _Figure | None]) -> _Figure | None:
        value = read_number(path)
        figure = None if value is None else convert(value)
        if figure is None:
            self._unknowns[name] = read_failure(path)
        return figure


def _is_off_the_bus(place: Path) -> bool:
    """True where the card's place on the bus reads as all ones: nothing answers there."""
    try:
        with (place / "config").open("rb") as file:
            return file.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False


def _uncorrectable_errors(told: str | None) -> Iterator[int]:
    """The uncorrected ones of a RAS counter: `ue: 3` among lines of other kinds."""
    for line in (told or "").splitlines():
        kind, _, count = line.partition(":")
        if kind.strip() == "ue" and count.strip().isdecimal() and count.isascii():
            yield int(count.strip()[:18])


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _files(place: Path, ending: str) -> list[Path]:
    return [path for path in _folders(place) if path.name.endswith(ending)]


def _percent(value: int) -> float | None:
    return float(value) if 0 <= value <= 100 else None  # noqa: PLR2004 - of a hundred


def _celsius(value: int) -> float | None:
    return value / _MILLI if -100 * _MILLI < value < 300 * _MILLI else None


def _watts(value: int) -> float | None:
    return round(value / _MICRO, 1) if 0 <= value < 100_000 * _MICRO else None


def _megahertz(value: int) -> int | None:
    return value // _MICRO if 0 <= value < 100_000 * _MICRO else None


# Small files of sysfs: each holds one value, and any of them may be missing, empty or refused.
#
# What cannot be read is `None`; `why_not` says why, for those who must give a reason. It never reads
# without a bound, and never writes.


_LONGEST_BYTES = 65_536


def read_text(path: Path, *, longest_bytes: int = _LONGEST_BYTES) -> str | None:
    """What the file says, without the space around it; None where that is nothing."""
    try:
        with path.open("rb") as file:
            return file.read(longest_bytes).decode("utf-8", "replace").strip() or None
    except (OSError, ValueError):
        return None


def read_number(path: Path, *, base: int = 10) -> int | None:
    """The whole number that the file holds."""
    digits = read_text(path, longest_bytes=64)
    if digits is None:
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None


def link_target_name(path: Path) -> str | None:
    """The last step of where a link leads: a device's driver, by its name."""
    try:
        return Path(path.readlink()).name or None
    except (OSError, ValueError):
        return None


def read_failure(path: Path) -> str:
    """Say why a file gave nothing, for a person."""
    try:
        with path.open("rb") as file:
            said = file.read(40)
    except OSError as error:
        return f"{path.name}: {os.strerror(error.errno) if error.errno else error}"
    return (
        f"{path.name} says {said.decode('utf-8', 'replace').strip()!r}" if said else f"{path.name} is empty"
    )
