"""What collectors read from sysfs: small files, sensors by their labels, and the devices on the PCI bus.

Each file holds one value, and may be missing, empty or refused; no figure is guessed from another.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from gpu_agent.probe import pci
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.nvml.readings import FIGURES, GPU_BOUNDS
from gpu_agent.records import dataclass, field_names
from gpu_agent.wire.inventory import Gpu

MIB = 1 << 20
MICRO = 1_000_000
MILLI = 1_000
LIVE_USE = ("memory_used_mb", "memory_free_mb")
FALLEN = "the GPU has fallen off the PCI bus"
ASLEEP = "the GPU is suspended and was not read, so as not to wake it"

_CARD = re.compile(r"card[0-9]+")
_LONGEST_BYTES = 65_536
_NVIDIAS = {
    "compute_capability": "a measure of NVIDIA's",
    "mig_enabled": "a mode of NVIDIA's",
    "recovery_action": "a report of NVIDIA's driver",
    "compute_mode": "a mode of NVIDIA's",
    "sram_threshold_exceeded": "a limit of NVIDIA's",
    **dict.fromkeys(
        ("remapped_rows_correctable", "remapped_rows_uncorrectable", "row_remap_failed"),
        "a count of NVIDIA's driver",
    ),
    **dict.fromkeys(("fabric_faults", "nvlinks_up", "nvlinks_down", "nvlink_errors"), "a link of NVIDIA's"),
}


@dataclass(frozen=True, slots=True)
class FigureFile:
    """The file of a figure: `per_unit` of its units make one of the inventory's."""

    names: tuple[str, ...]
    """The first that holds a number counts."""
    per_unit: float = 1
    convert: Callable[[float], float] = float
    hwmon: bool = False
    """Whether it is among the sensors' files, or in the card's own folder."""
    labels: tuple[str, ...] = ()
    """Of sensors of that kind that have one of these labels, the first replaces `names`."""


def tenths(figure: float) -> float:
    """Round to one digit."""
    return round(figure, 1)


class CardFolder:
    """The folder of a card in sysfs, for one reading: its figures, and why others are unknown."""

    def __init__(self, folder: Path, files: Mapping[str, FigureFile], live: tuple[str, ...]) -> None:
        """`live` are the fields that are read of a card that is awake, `files` among them."""
        self.folder = folder
        self._files = files
        self._live = live
        self.unknowns = {
            name: _NVIDIAS.get(name, "not read from sysfs")
            for name in field_names(Gpu)
            if name in {*FIGURES, *_NVIDIAS, "retirement_pending"} - {*live, "memory_mb", *LIVE_USE}
        }
        """Field → why it is unknown."""
        self.hwmon = next(iter(list_folder(folder / "hwmon")), folder / "hwmon" / "hwmon0")
        """Where its sensors are."""

    @property
    def asleep(self) -> bool:
        """Whether it is suspended, so that reading its sensors would wake it."""
        return read_text(self.folder / "power" / "runtime_status") == "suspended"

    @property
    def off_the_bus(self) -> bool:
        """Whether its PCI configuration reads as all ones: nothing answers there."""
        try:
            with (self.folder / "config").open("rb") as file:
                return file.read(4) == b"\xff\xff\xff\xff"
        except OSError:
            return False

    def unread(self, why: str) -> None:
        """Nothing that changes is read."""
        self.unknowns |= dict.fromkeys(self._live, why)

    def figures(self) -> dict[str, float | None]:
        """The figures of its files."""
        return {name: self._figure(name, file) for name, file in self._files.items()}

    def megabytes(self, name: str) -> int | None:
        """The MiB that a file states in bytes; `None` where it states none that a GPU can have."""
        value = read_number(self.folder / name)
        return value // MIB if value is not None and 0 <= value // MIB <= GPU_BOUNDS["memory_mb"][1] else None

    def _figure(self, name: str, file: FigureFile) -> float | None:
        folder = self.hwmon if file.hwmon else self.folder
        least, most = GPU_BOUNDS[name]
        labelled = self._labelled(file) if file.labels else None
        *preferred, last = (folder / each for each in ((labelled,) if labelled else file.names))
        path = next((each for each in preferred if read_number(each) is not None), last)
        value = read_number(path)
        if value is None or not least <= value / file.per_unit <= most:
            self.unknowns[name] = read_failure(path)
            return None
        return file.convert(value / file.per_unit)

    def _labelled(self, file: FigureFile) -> str | None:
        """The file of the first sensor of the same kind with one of the labels."""
        kind = _kind(file.names[0])
        sensors = self._sensors
        return next((sensors[kind, label] for label in file.labels if (kind, label) in sensors), None)

    @cached_property
    def _sensors(self) -> Mapping[tuple[str, str | None], str]:
        """Kind and label → the sensor's file."""
        return {
            (_kind(path.name), read_text(path)): path.name.removesuffix("_label") + "_input"
            for path in files_ending(self.hwmon, "_label")
        }


def _kind(name: str) -> str:
    """The kind of a sensor, by its file: `temp` of `temp2_input`."""
    return name.partition("_")[0].rstrip("0123456789")


class PciBus:
    """The GPUs of one vendor on the PCI bus. What a device is does not change; a server has hundreds."""

    def __init__(self, sys_dir: Path, vendor: int) -> None:
        self._bus = sys_dir / "bus" / "pci" / "devices"
        self._vendor = vendor
        self._listed: tuple[str, ...] = ()
        self._gpus: tuple[Path, ...] = ()

    def gpus(self) -> tuple[Path, ...]:
        """The vendor's display controllers and accelerators, with a driver or without."""
        listed = tuple(sorted(device.name for device in list_folder(self._bus)))
        if listed != self._listed:
            self._gpus = tuple(
                self._bus / name for name in listed if pci.is_gpu(f"{self._bus}/{name}", self._vendor)
            )
            self._listed = listed
        return self._gpus


def drm_cards(sys_dir: Path, drivers: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """The folder of each card that one of these drivers has, and of its device, named by its PCI address.

    Raises:
        OSError: the cards cannot be listed.
    """
    drm = sys_dir / "class" / "drm"
    if not drm.is_dir():
        return
    for entry in drm.iterdir():
        device = entry / "device"
        if _CARD.fullmatch(entry.name) and link_target_name(device / "driver") in drivers:
            yield entry, device.resolve()


def uuid_by_address(vendor: str, address: str, surroundings: Surroundings) -> str:
    """A name for a GPU without an id of its own: its slot, and a hash of the machine's id (machine-id(5))."""
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, for the GPUs of few machines

    machine = read_text(surroundings.machine_id)
    if not machine:
        import socket  # noqa: PLC0415 - next to every machine has an id

        machine = socket.gethostname()
    digest = hashlib.sha256(f"gpu-agent {machine}".encode()).hexdigest()
    return f"{vendor}-{digest[:12]}-{address}"


def not_offered(gpus: tuple[Gpu, ...]) -> str | None:
    """Say what would offer the GPUs where there are some and none is offered."""
    if not gpus or any(gpu.offered for gpu in gpus):
        return None
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    return f"Graphics that are part of the processor ({names}) are not offered: set `offer_integrated_gpus`."


def list_folder(path: Path) -> list[Path]:
    """What is in a folder, by name; nothing where it cannot be listed."""
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def files_ending(folder: Path, ending: str) -> list[Path]:
    """The files of a folder whose names end so."""
    return [path for path in list_folder(folder) if path.name.endswith(ending)]


def read_text(path: Path, *, longest_bytes: int = _LONGEST_BYTES) -> str | None:
    """The content of a file, stripped; None where there is none, or it cannot be read."""
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
    """The name of a link's target: a device's driver, for example."""
    try:
        return Path(path.readlink()).name or None
    except (OSError, ValueError):
        return None


def read_failure(path: Path) -> str:
    """Say why a file gave no value."""
    try:
        with path.open("rb") as file:
            content = file.read(40)
    except OSError as error:
        return f"{path.name}: {os.strerror(error.errno) if error.errno else error}"
    if not content:
        return f"{path.name} is empty"
    return f"{path.name} says {content.decode('utf-8', 'replace').strip()!r}"
