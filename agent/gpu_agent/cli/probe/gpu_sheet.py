"""GPUs as a table for a person: each with its health, memory and load, slices under their parent.

In a pipe there are no bars, and every row is whole. What a terminal has no room for goes in order of
worth: UUIDs, the bars, power, temperature, load, memory. It refuses to shorten a GPU's health.
"""

from collections.abc import Iterable, Iterator, Sequence

from gpu_agent.cli.bars import Letters, bar
from gpu_agent.cli.lines import BLANK, Line, Piece, line
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.wire.inventory import Gpu, Health, MemoryKind

HEALTH_STYLES = {
    Health.OK: "green",
    Health.DEGRADED: "yellow",
    Health.LOST: "bold red",
    Health.UNKNOWN: "red",
}
MIB_IN_GIB = 1024
_MEMORY_CELLS, _LOAD_CELLS = 8, 6
_COLUMNS = (
    Column(head="GPU"),
    Column(head="NAME", folds=True),
    Column(head="HEALTH"),
    Column(head="MEMORY", right=True, worth=7),
    Column(head="", worth=3),
    Column(head="LOAD", right=True, worth=6),
    Column(head="", worth=2),
    Column(head="TEMP", right=True, worth=5),
    Column(head="POWER", right=True, worth=4),
    Column(head="UUID", worth=1),
)
_BARS = (4, 6)
_SMALL_GIB = 10.0
"""Below this a slice's or a small card's memory is told with one decimal."""
_NOT_WORTH_TELLING = frozenset({"sync_boost", "display_clock_setting", "sw_power_cap"})
"""Reasons for lower clocks that are somebody's wish, or every busy GPU's."""


def gpu_lines(gpus: Sequence[Gpu], columns: int | None, letters: Letters) -> list[Line]:
    """Draw them for a terminal of so many columns; None: for no terminal."""
    kept = [place for place in range(len(_COLUMNS)) if columns is not None or place not in _BARS]
    rows = [
        Row([cells[place] for place in kept], _note(gpu))
        for gpu, below in in_order(gpus)
        for cells in (list(_cells(gpu, below, letters)),)
    ]
    return laid_out(Sheet([_COLUMNS[place] for place in kept], rows, note="NOTE"), columns)


def in_order(gpus: Sequence[Gpu]) -> Iterator[tuple[Gpu, str | None]]:
    """Yield each GPU and behind it its slices, a slice with its number as `0:1`: parent and place."""
    parents = {gpu.uuid: gpu for gpu in gpus if gpu.parent_uuid is None}
    for parent in parents.values():
        yield parent, None
        slices = (gpu for gpu in gpus if gpu.parent_uuid == parent.uuid)
        for number, below in enumerate(slices):
            yield below, f"{label(parent)}:{number}"
    for gpu in gpus:
        if gpu.parent_uuid is not None and gpu.parent_uuid not in parents:
            yield gpu, "?:?"


def label(gpu: Gpu) -> str:
    """The number by which the driver lists a GPU."""
    return "?" if gpu.index is None else str(gpu.index)


def short(name: str) -> str:
    """A GPU's name without the maker's, which its column has no room for."""
    return name.removeprefix("NVIDIA ")


def gib(mib: float) -> str:
    """A size in GiB."""
    size = mib / MIB_IN_GIB
    return f"{size:.1f}".removesuffix(".0") if size < _SMALL_GIB else f"{size:.0f}"


def _cells(gpu: Gpu, below: str | None, letters: Letters) -> Iterator[Line]:
    yield line(below or label(gpu))
    yield line("" if below is None else f"{letters.branch} ", _name(gpu, below))
    yield line(Piece(gpu.health.value, HEALTH_STYLES[gpu.health]))
    yield _memory(gpu)
    yield bar(_share(gpu.memory_used_mb, gpu.memory_mb), _MEMORY_CELLS, letters)
    yield _figure(gpu.utilization_percent, "%")
    yield bar(_share(gpu.utilization_percent, 100), _LOAD_CELLS, letters)
    yield _figure(gpu.temperature_c, f"{letters.degree}C")
    yield _power(gpu)
    yield line(Piece(gpu.uuid, "dim"))


def _name(gpu: Gpu, below: str | None) -> str:
    """A slice's name begins with its parent's, which stands above it."""
    name = short(gpu.name)
    mig = name.find("MIG ")
    return name[mig:] if below is not None and mig > 0 else name


def _memory(gpu: Gpu) -> Line:
    if not gpu.memory_mb:
        return line(Piece("unknown", "dim"))
    total = f"{gib(gpu.memory_mb)} GiB"
    return line(total if gpu.memory_used_mb is None else f"{gib(gpu.memory_used_mb)}/{total}")


def _power(gpu: Gpu) -> Line:
    if gpu.power_w is None:
        return line(Piece("?", "dim"))
    limit = "" if gpu.power_limit_w is None else f"/{gpu.power_limit_w:.0f}"
    return line(f"{gpu.power_w:.0f}{limit} W")


def _figure(value: float | None, unit: str) -> Line:
    return line(Piece("?", "dim") if value is None else f"{value:.0f}{unit}")


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _note(gpu: Gpu) -> Line:
    """What a person should know of a GPU that is no fault of it."""
    slowed = [each for each in gpu.throttle_reasons or () if each not in _NOT_WORTH_TELLING]
    pieces = [
        Piece(f"clocks held down: {', '.join(slowed)}", "yellow") if slowed else None,
        Piece(f"{gpu.ecc_uncorrected} uncorrected memory errors", "yellow") if gpu.ecc_uncorrected else None,
        Piece("memory shared with the host", "dim") if gpu.memory_kind is MemoryKind.UNIFIED else None,
        Piece("asleep, and not woken for this", "dim") if gpu.asleep else None,
        Piece("hidden by CUDA_VISIBLE_DEVICES", "yellow") if gpu.visible is False else None,
        _processes(gpu),
    ]
    told = [piece for piece in pieces if piece is not None]
    return line(*_joined(told)) if told else BLANK


def _processes(gpu: Gpu) -> Piece | None:
    if not gpu.processes:
        return None
    most = sorted(gpu.processes, key=lambda one: -(one.memory_mb or 0))
    return Piece(f"used by {', '.join(_process(one.pid, one.memory_mb, ours=one.ours) for one in most)}")


def _process(pid: int, memory_mb: int | None, *, ours: bool | None) -> str:
    about = [
        *([] if memory_mb is None else [f"{gib(memory_mb)} GiB"]),
        *([] if ours is None else ["ours" if ours else "foreign"]),
    ]
    return f"process {pid}" + (f" ({', '.join(about)})" if about else "")


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for place, piece in enumerate(pieces):
        if place:
            yield Piece("; ")
        yield piece
