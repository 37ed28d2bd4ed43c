"""AMD GPUs, read from the files of the `amdgpu` kernel driver in sysfs: the collector `amd`.

No library and no vendor tool; nothing is written, and no suspended GPU is woken. A file that is missing,
empty, refused or holds nonsense makes its own value unknown, with the reason. Cards that another driver has,
such as one handed to a virtual machine, are left out.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gpu_agent.probe.collectors.protocol import INTERFACE, Surroundings
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.probe.nvml.readings import FIGURES, GPU_BOUNDS
from gpu_agent.records import dataclass, field_names, replace
from gpu_agent.wire.inventory import Gpu, GpuReport, HealthReason, MemoryKind, Outcome

DRIVER = "amdgpu"
VENDOR = 0x1002
NAMES = Path("/usr/share/libdrm/amdgpu.ids")
"""Device ids and revisions → GPU models, as libdrm ships them; many machines have the file."""
_CARD = re.compile(r"card[0-9]+")
_DISPLAY_CLASSES = (0x03, 0x12)
"""PCI base classes: a display controller, a processing accelerator."""
_LONGEST_NAMES_BYTES = 1 << 20
_LONGEST_BYTES = 65_536
_MIB = 1 << 20
_MICRO = 1_000_000
_MILLI = 1_000
_TINY_BYTES = 2 << 30
"""No card that is worth a job has so little memory of its own."""
_SUSPENDED = "suspended"
_ASLEEP = "the GPU is suspended and was not read, so as not to wake it"
_FALLEN = "the GPU has fallen off the PCI bus"
_USE_FIELDS = ("memory_used_mb", "memory_free_mb")
_NVIDIAS = {
    "compute_capability": "a measure of NVIDIA's",
    "mig_enabled": "a mode of NVIDIA's",
    "recovery_action": "a report of NVIDIA's driver",
    "compute_mode": "a mode of NVIDIA's",
    "sram_threshold_exceeded": "a limit of NVIDIA's",
    **dict.fromkeys(("fabric_faults", "nvlinks_up", "nvlinks_down", "nvlink_errors"), "a link of NVIDIA's"),
}


@dataclass(frozen=True, slots=True)
class _File:
    """The file of a figure: `per_unit` of its units make one of the inventory's."""

    names: tuple[str, ...]
    """The first that holds a number counts."""
    per_unit: float = 1
    convert: Callable[[float], float] = float
    hwmon: bool = False
    """Whether it is among the sensors' files, or in the card's own folder."""


def _tenths(figure: float) -> float:
    return round(figure, 1)


_FILES: Mapping[str, _File] = {
    "utilization_percent": _File(("gpu_busy_percent",)),
    "memory_utilization_percent": _File(("mem_busy_percent",)),
    "temperature_c": _File(("temp1_input",), _MILLI, hwmon=True),
    # the mean where the driver has one, else the moment's
    "power_w": _File(("power1_average", "power1_input"), _MICRO, _tenths, hwmon=True),
    "power_limit_w": _File(("power1_cap",), _MICRO, _tenths, hwmon=True),
    "clock_sm_mhz": _File(("freq1_input",), _MICRO, int, hwmon=True),
    "clock_memory_mhz": _File(("freq2_input",), _MICRO, int, hwmon=True),
}
_LIVE_FIELDS = (*_FILES, "ecc_uncorrected", "retirement_pending")
_ABSENT_HERE = {
    name: _NVIDIAS.get(name, "not read from sysfs")
    for name in field_names(Gpu)
    if name in {*FIGURES, *_NVIDIAS} - {*_LIVE_FIELDS, "memory_mb", *_USE_FIELDS}
}
"""Field → why it is unknown of every card."""


class AmdGpus:
    """Every card that the driver has. What does not change is remembered from one reading to the next."""

    interface = INTERFACE

    def __init__(self, surroundings: Surroundings, *, names: Path = NAMES) -> None:
        self._sys_dir = surroundings.sys_dir
        self._names = names
        self._model_names: dict[tuple[int, int], str] | None = None
        self._listed: tuple[str, ...] = ()
        self._ours: tuple[Path, ...] = ()
        """Of the devices that were listed on the PCI bus, those that are AMD GPUs."""

    def read(self, deadline_seconds: float) -> GpuReport:  # noqa: ARG002 - sysfs answers or hangs
        """Read all cards, in the order of their PCI addresses."""
        try:
            folders = sorted(set(self._cards()))
        except OSError as error:
            return GpuReport(
                outcome=Outcome.DRIVER_BROKEN,
                detail=f"The AMD cards cannot be listed ({error}): give the agent read access to sysfs.",
            )
        if not folders:
            return self._no_card()
        if self._model_names is None:
            self._model_names = load_names(self._names)
        gpus = _unique_ids(
            Card(folder, index, model_names=self._model_names).read() for index, folder in enumerate(folders)
        )
        version = read_text(self._sys_dir / "module" / DRIVER / "version")
        return GpuReport(
            outcome=Outcome.OK, gpus=gpus, driver_version=f"{DRIVER} {version}" if version else None
        )

    def _cards(self) -> Iterator[Path]:
        """The sysfs folders of all cards that the driver has, each named by its PCI address."""
        drm = self._sys_dir / "class" / "drm"
        if not drm.is_dir():
            return
        for entry in drm.iterdir():
            device = entry / "device"
            if _CARD.fullmatch(entry.name) and link_target_name(device / "driver") == DRIVER:
                yield device.resolve()

    def _no_card(self) -> GpuReport:
        """The machine has no card, or one without its driver."""
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
    """Name cards by their PCI addresses where their driver gives several the same id."""
    read = tuple(gpus)
    count = Counter(gpu.uuid for gpu in read)
    return tuple(gpu if count[gpu.uuid] == 1 else replace(gpu, uuid=f"AMD-{gpu.pci_bus_id}") for gpu in read)


def _is_amd_gpu(device: Path) -> bool:
    kind = read_number(device / "class", base=16)
    return (
        kind is not None
        and kind >> 16 in _DISPLAY_CLASSES
        and read_number(device / "vendor", base=16) == VENDOR
    )


def load_names(names: Path) -> dict[tuple[int, int], str]:
    """Read libdrm's table: device id and revision → GPU model. Empty where it is not there."""
    table: dict[tuple[int, int], str] = {}
    for line in (read_text(names, longest_bytes=_LONGEST_NAMES_BYTES) or "").splitlines():
        device, _, rest = line.partition(",")
        revision, _, name = rest.partition(",")
        try:
            table[int(device, 16), int(revision, 16)] = name.strip()
        except ValueError:
            continue  # a comment, or the version of the table
    return table


class Card:
    """A card's folder in sysfs, for one reading. No figure is guessed from another."""

    def __init__(self, folder: Path, index: int, *, model_names: Mapping[tuple[int, int], str]) -> None:
        self._folder = folder
        self._index = index
        self._model_names = model_names
        self._unknowns = dict(_ABSENT_HERE)
        self._hwmon = next(iter(_folders(folder / "hwmon")), folder / "hwmon" / "hwmon0")

    def read(self) -> Gpu:
        """Read the card; of a suspended one only the files for which the driver does not wake it."""
        if read_text(self._folder / "power" / "runtime_status") == _SUSPENDED:
            return self._gpu((), dict.fromkeys(_LIVE_FIELDS, _ASLEEP), asleep=True)
        if _is_off_the_bus(self._folder):
            return self._gpu((reason("gpu_lost", detail=_FALLEN),), dict.fromkeys(_LIVE_FIELDS, _FALLEN))
        bad_pages = tuple(self._bad_pages())
        return self._gpu(bad_pages, {}, asleep=False, **self._figures(bad_pages))

    def _gpu(
        self, reasons: tuple[HealthReason, ...], unknowns: Mapping[str, str], **figures: float | bool | None
    ) -> Gpu:
        """Join what is known at any time with the figures of a card that is awake."""
        memory = self._memory()
        return Gpu(
            uuid=self._uuid(),
            name=self._name(),
            index=self._index,
            vendor="amd",
            pci_bus_id=self._folder.name,
            health=health_from(reasons),
            reasons=reasons,
            unknowns={**self._unknowns, **unknowns},
            **memory,  # type: ignore[arg-type]  # names and types are `_memory`'s
            **figures,  # type: ignore[arg-type]  # and `_figures`'
        )

    def _uuid(self) -> str:
        """The driver's own id of the card, which follows it from slot to slot; else its slot."""
        unique = read_number(self._folder / "unique_id", base=16)
        return f"AMD-{unique:016x}" if unique else f"AMD-{self._folder.name}"

    def _name(self) -> str:
        name = read_text(self._folder / "product_name")
        if name and name.isprintable():
            return name
        device = read_number(self._folder / "device", base=16)
        revision = read_number(self._folder / "revision", base=16)
        if device is None:
            return "AMD GPU"
        listed = self._model_names.get((device, -1 if revision is None else revision))
        return listed or f"AMD GPU 1002:{device:04x}"

    def _memory(self) -> dict[str, object]:
        """Its own memory; for a processor's graphics, whose own is tiny, also what it shares (GTT)."""
        total, used = self._bytes("vram_total"), self._bytes("vram_used")
        shared, shared_used = self._bytes("gtt_total"), self._bytes("gtt_used")
        if total is None or total < _MIB:  # it would be 0 MiB, which no card has
            why = read_failure(self._folder / "mem_info_vram_total")
            self._unknowns |= dict.fromkeys(("memory_mb", *_USE_FIELDS), why)
            return {}
        kind, unread = MemoryKind.DEDICATED, "mem_info_vram_used"
        if total < _TINY_BYTES and shared is not None and shared > total:
            kind, total = MemoryKind.UNIFIED, total + shared
            unread = unread if used is None else "mem_info_gtt_used"
            used = None if used is None or shared_used is None else used + shared_used
        if used is None or used > total:
            self._unknowns |= dict.fromkeys(_USE_FIELDS, read_failure(self._folder / unread))
            return {"memory_kind": kind, "memory_mb": total // _MIB}
        return {
            "memory_kind": kind,
            "memory_mb": total // _MIB,
            "memory_used_mb": used // _MIB,
            "memory_free_mb": (total - used) // _MIB,
        }

    def _bytes(self, name: str) -> int | None:
        value = read_number(self._folder / f"mem_info_{name}")
        return value if value is not None and 0 <= value // _MIB <= GPU_BOUNDS["memory_mb"][1] else None

    def _figures(self, bad_pages: tuple[HealthReason, ...]) -> dict[str, float | bool | None]:
        pages = self._folder / "ras" / "gpu_vram_bad_pages"
        known = read_text(pages) is not None
        if not known:
            self._unknowns["retirement_pending"] = read_failure(pages)
        return {
            **{name: self._figure(name, file) for name, file in _FILES.items()},
            "ecc_uncorrected": self._uncorrected(),
            "retirement_pending": bool(bad_pages) if known else None,
        }

    def _uncorrected(self) -> int | None:
        """Uncorrected memory and block errors since the driver was loaded, over all blocks that count."""
        folder = self._folder / "ras"
        counts = [
            count for path in _files(folder, "_err_count") for count in _uncorrectable_errors(read_text(path))
        ]
        if counts:
            return sum(counts)
        self._unknowns["ecc_uncorrected"] = read_failure(folder / "umc_err_count")
        return None

    def _bad_pages(self) -> Iterator[HealthReason]:
        """Pages found bad that are still in use: `P` waits for its turn, `F` could not be set aside."""
        lines = (read_text(self._folder / "ras" / "gpu_vram_bad_pages") or "").splitlines()
        waiting = [line for line in lines if line.rpartition(":")[2].strip() in ("P", "F")]
        if waiting:
            yield reason(
                "retired_pages_pending", detail=f"{len(waiting)} bad memory pages are not yet set aside"
            )

    def _figure(self, name: str, file: _File) -> float | None:
        folder = self._hwmon if file.hwmon else self._folder
        least, most = GPU_BOUNDS[name]
        *preferred, last = (folder / each for each in file.names)
        path = next((each for each in preferred if read_number(each) is not None), last)
        value = read_number(path)
        if value is None or not least <= value / file.per_unit <= most:
            self._unknowns[name] = read_failure(path)
            return None
        return file.convert(value / file.per_unit)


def _is_off_the_bus(folder: Path) -> bool:
    """True where the card's PCI configuration reads as all ones: nothing answers there."""
    try:
        with (folder / "config").open("rb") as file:
            return file.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False


def _uncorrectable_errors(text: str | None) -> Iterator[int]:
    """The uncorrected ones of a RAS counter: `ue: 3` among lines of other kinds."""
    for line in (text or "").splitlines():
        kind, _, count = line.partition(":")
        if kind.strip() == "ue" and count.strip().isdecimal() and count.isascii():
            yield int(count.strip()[:18])


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _files(folder: Path, ending: str) -> list[Path]:
    return [path for path in _folders(folder) if path.name.endswith(ending)]


# ---- small files of sysfs: each holds one value, and may be missing, empty or refused


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
