"""GPUs as a table for a person, in whatever room and letters the terminal has.

What there is no room for goes in order of worth: UUIDs, the memory's bar, then load, temperature
and power. It refuses to shorten a GPU's health.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpu_agent.wire.inventory import Gpu, Health

BAR_CELLS = 8
WIDE_COLUMNS = 118
"""From here on a terminal has room for UUIDs."""
HEALTH_STYLES = {
    Health.OK: "green",
    Health.DEGRADED: "yellow",
    Health.LOST: "bold red",
    Health.UNKNOWN: "red",
}


@dataclass(frozen=True, slots=True)
class _Letters:
    """The letters that are not ASCII, or what stands for them."""

    filled: str
    free: str
    degree: str


_RICH = _Letters("█", "░", "°")
_PLAIN = _Letters("#", ".", "")


@dataclass(frozen=True, slots=True)
class _Shown:
    uuid: bool = False
    bar: bool = False
    figures: bool = False


_ENDLESS = 10_000
_LAYOUTS = (_Shown(bar=True, figures=True), _Shown(figures=True), _Shown())


def gpu_table(gpus: Iterable[Gpu], console: Console) -> Table:
    """Draw the fullest table that fits the console."""
    listed = tuple(gpus)
    letters = _RICH if _can_write(console.encoding) else _PLAIN
    if console.width >= WIDE_COLUMNS:
        return _drawn(listed, _Shown(uuid=True, bar=True, figures=True), letters)
    tables = [_drawn(listed, shown, letters) for shown in _LAYOUTS]
    endless = console.options.update(max_width=_ENDLESS)
    fitting = (table for table in tables if table.__rich_measure__(console, endless).maximum <= console.width)
    return next(fitting, tables[-1])


def _can_write(encoding: str) -> bool:
    try:
        f"{_RICH.filled}{_RICH.free}{_RICH.degree}".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _drawn(gpus: Sequence[Gpu], shown: _Shown, letters: _Letters) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GPU", no_wrap=True)
    table.add_column("NAME", overflow="fold", no_wrap=shown.figures)
    table.add_column("HEALTH", no_wrap=True, min_width=max(len(health.value) for health in Health))
    table.add_column("MEMORY", no_wrap=True)
    if shown.figures:
        for column in ("LOAD", "TEMP", "POWER"):
            table.add_column(column, justify="right", no_wrap=True)
    if shown.uuid:
        table.add_column("UUID", no_wrap=True, style="dim")
    for gpu in gpus:
        table.add_row(*_cells(gpu, shown, letters))
    return table


def _cells(gpu: Gpu, shown: _Shown, letters: _Letters) -> Iterator[Text]:
    yield Text("?" if gpu.index is None else str(gpu.index))
    yield Text(gpu.name.removeprefix("NVIDIA "))
    yield Text(gpu.health.value, style=HEALTH_STYLES[gpu.health])
    yield _memory(gpu, letters if shown.bar else None)
    if shown.figures:
        yield _figure(gpu.utilization_percent, "%")
        yield _figure(gpu.temperature_c, f" {letters.degree}C")
        yield _figure(gpu.power_w, " W")
    if shown.uuid:
        yield Text(gpu.uuid)


def _memory(gpu: Gpu, bar: _Letters | None) -> Text:
    if not gpu.memory_mb:
        return Text("unknown", style="dim")
    total = f"{gpu.memory_mb / 1024:.0f} GiB"
    if gpu.memory_used_mb is None:
        return Text(total)
    words = f"{gpu.memory_used_mb / 1024:.0f}/{total}"
    if bar is None:
        return Text(words)
    filled = round(BAR_CELLS * min(1.0, gpu.memory_used_mb / gpu.memory_mb))
    drawn = Text(bar.filled * filled, style="cyan")
    drawn.append(bar.free * (BAR_CELLS - filled), style="dim")
    return drawn.append(f" {words}", style="default")


def _figure(value: float | None, unit: str) -> Text:
    return Text("?" if value is None else f"{value:.0f}{unit}")
