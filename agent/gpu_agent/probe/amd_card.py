"""One AMD card in sysfs, read file by file: who it is, its figures, and what its driver says is wrong.

A file that is missing, empty, refused or holds nonsense costs its own figure, which is unknown with
the reason. Of a card that sleeps only those files are read for which the driver does not wake it.
It never guesses a figure from another.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from gpu_agent.probe.reasons import health_from, reason
from gpu_agent.probe.sysfs import number, text, why_not
from gpu_agent.wire.inventory import Gpu, HealthReason, MemoryKind

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
        if text(self._place / "power" / "runtime_status") == _SLEEPING:
            return self._known((), dict.fromkeys(_FIGURES, _ASLEEP), asleep=True)
        if _fallen_off(self._place):
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
        unique = number(self._place / "unique_id", base=16)
        return f"AMD-{unique:016x}" if unique else f"AMD-{self._place.name}"

    def _name(self) -> str:
        told = text(self._place / "product_name")
        if told:
            return told
        device = number(self._place / "device", base=16)
        revision = number(self._place / "revision", base=16)
        if device is None:
            return "AMD GPU"
        listed = self._products.get((device, -1 if revision is None else revision))
        return listed or f"AMD GPU 1002:{device:04x}"

    def _memory(self) -> dict[str, object]:
        """Its own memory; of a processor's graphics, whose own is tiny, also what it shares (GTT)."""
        total, used = self._bytes("vram_total"), self._bytes("vram_used")
        shared, shared_used = self._bytes("gtt_total"), self._bytes("gtt_used")
        if not total:
            self._unknowns["memory_mb"] = why_not(self._place / "mem_info_vram_total")
            return {}
        kind = MemoryKind.DEDICATED
        if total < _TINY_BYTES and shared is not None and shared > total:
            kind, total = MemoryKind.UNIFIED, total + shared
            used = None if used is None or shared_used is None else used + shared_used
        if used is None or used > total:
            self._unknowns["memory_used_mb"] = why_not(self._place / "mem_info_vram_used")
            return {"memory_kind": kind, "memory_mb": total // _MIB}
        return {
            "memory_kind": kind,
            "memory_mb": total // _MIB,
            "memory_used_mb": used // _MIB,
            "memory_free_mb": (total - used) // _MIB,
        }

    def _bytes(self, name: str) -> int | None:
        value = number(self._place / f"mem_info_{name}")
        return value if value is not None and 0 <= value <= 4 << 40 else None

    def _figures(self, bad_pages: tuple[HealthReason, ...]) -> dict[str, float | bool | None]:
        limit = self._asked("power_limit_w", self._hwmon / "power1_cap", _watts)
        pages = text(self._place / "ras" / "gpu_vram_bad_pages")
        if pages is None:
            self._unknowns["retirement_pending"] = why_not(self._place / "ras" / "gpu_vram_bad_pages")
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
        value = number(average)
        path = average if value is not None else self._hwmon / "power1_input"
        return self._asked("power_w", path, _watts)

    def _uncorrected(self) -> int | None:
        """Uncorrected memory and block errors since the driver was loaded, over all blocks that count."""
        folder = self._place / "ras"
        counts = [count for path in _files(folder, "_err_count") for count in _errors(text(path))]
        if counts:
            return sum(counts)
        self._unknowns["ecc_uncorrected"] = why_not(folder / "umc_err_count")
        return None

    def _bad_pages(self) -> Iterator[HealthReason]:
        """Pages found bad that are still in use: `P` waits for its turn, `F` could not be set aside."""
        lines = (text(self._place / "ras" / "gpu_vram_bad_pages") or "").splitlines()
        waiting = [line for line in lines if line.rpartition(":")[2].strip() in ("P", "F")]
        if waiting:
            yield reason(
                "retired_pages_pending", detail=f"{len(waiting)} bad memory pages are not yet set aside"
            )

    def _asked(self, name: str, path: Path, convert: Callable[[int], _Figure | None]) -> _Figure | None:
        value = number(path)
        figure = None if value is None else convert(value)
        if figure is None:
            self._unknowns[name] = why_not(path)
        return figure


def _fallen_off(place: Path) -> bool:
    """True where the card's place on the bus reads as all ones: nothing answers there."""
    try:
        with (place / "config").open("rb") as file:
            return file.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False


def _errors(told: str | None) -> Iterator[int]:
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
