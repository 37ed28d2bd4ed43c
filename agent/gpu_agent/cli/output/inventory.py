"""GPUs, models, host and status of one machine as tables, facts and words.

In a pipe there are no bars and every row is whole. A terminal drops columns by priority, never a GPU's
health. What is not known is left out or shown as unknown, never guessed.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from gpu_agent.cli.output.blocks import Block
from gpu_agent.cli.output.table import Column, Fact, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Glyphs, Line, Piece, bar, line, separate, wrap
from gpu_agent.wire.codes import STATUS_COLOURS
from gpu_agent.wire.inventory import CacheDisk, Gpu, Health, Host, Inventory, MemoryKind, Model, ModelStatus

_HEALTH_STYLES: dict[str, str] = {
    Health.OK: "green",
    Health.DEGRADED: "yellow",
    Health.LOST: "bold red",
    Health.UNKNOWN: "red",
}
MIB_IN_GIB = 1024
_WARM_C, _HOT_C = 85.0, 92.0
"""From these temperatures on a GPU's figure is coloured; its own limits are what slows it down."""
_MEMORY_CELLS, _LOAD_CELLS = 8, 6
_GPU_COLUMNS = (
    Column(head="GPU"),
    Column(head="NAME", wraps=True),
    Column(head="HEALTH"),
    Column(head="MEMORY", right=True, priority=7),
    Column(head="", priority=3),
    Column(head="LOAD", right=True, priority=6),
    Column(head="", priority=2),
    Column(head="TEMP", right=True, priority=5),
    Column(head="POWER", right=True, priority=4),
    Column(head="UUID", priority=1),
)
_BARS = (4, 6)
_SMALL_GIB = 10.0
"""The memory of a MIG device or a small card, below this, is given with one decimal."""
_NOT_SHOWN = frozenset({"sync_boost", "display_clock_setting", "sw_power_cap"})
"""Reasons for lower clocks that an operator has set, or that every busy GPU has."""
SHOWN_READY = 12
"""Of each kind, on a terminal."""
MODEL_STATUS_STYLES = {
    ModelStatus.READY: "green",
    ModelStatus.DOWNLOADING: "cyan",
    ModelStatus.NOT_INSTALLED: "yellow",
    ModelStatus.ERROR: "red",
}
_MODEL_COLUMNS = (
    Column(head="KIND"),
    Column(head="MODEL", wraps=True),
    Column(head="VERSION", wraps=True, priority=3),
    Column(head="SIZE", right=True, priority=2),
    Column(head="SOURCE", priority=1),
    Column(head="STATE"),
)
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000
_GIB = 1 << 30


def gpu_table(
    gpus: Sequence[Gpu], columns: int | None, letters: Glyphs, *, only: Container[str] | None = None
) -> list[Line]:
    """Draw them for a terminal of so many columns; None: for no terminal. `only`: those with these UUIDs."""
    shown = [index for index in range(len(_GPU_COLUMNS)) if columns is not None or index not in _BARS]
    rows = [
        Row([cells[index] for index in shown], _note(gpu))
        for gpu, below in in_tree_order(gpus)
        if only is None or gpu.uuid in only
        for cells in (list(_gpu_cells(gpu, below, letters)),)
    ]
    return render_table(Table([_GPU_COLUMNS[index] for index in shown], rows, note="NOTE"), columns)


def gpu_block(gpus: Sequence[Gpu], columns: int | None, letters: Glyphs) -> Block:
    """Draw them as a part of a page: where they do not all fit, those with a fault come first."""

    def cut(lines: int) -> list[Line]:
        chosen = [gpu.uuid for gpu in sorted((gpu for gpu, _ in in_tree_order(gpus)), key=_is_healthy)]
        table = gpu_table(gpus, columns, letters)
        while chosen and len(table) > lines - 1:
            del chosen[-max(1, (len(table) - lines + 1) // 2) :]
            table = gpu_table(gpus, columns, letters, only=frozenset(chosen))
        left = Counter(gpu.health.value for gpu in gpus if gpu.uuid not in chosen)
        words = ", ".join(f"{count} {health}" for health, count in left.items())
        return [*table, line(Piece(f"and {left.total()} more: {words}", "dim"))]

    return Block("GPUs", gpu_table(gpus, columns, letters), cut=cut)


def _is_healthy(gpu: Gpu) -> bool:
    return gpu.health is Health.OK and not gpu.reasons


def in_tree_order(gpus: Sequence[Gpu]) -> Iterator[tuple[Gpu, str | None]]:
    """Yield each GPU and after it its MIG devices, which are numbered `0:1`: parent and index."""
    parents = {gpu.uuid: gpu for gpu in gpus if gpu.parent_uuid is None}
    for parent in parents.values():
        yield parent, None
        devices = (gpu for gpu in gpus if gpu.parent_uuid == parent.uuid)
        for number, below in enumerate(devices):
            yield below, f"{gpu_label(parent)}:{number}"
    for gpu in gpus:
        if gpu.parent_uuid is not None and gpu.parent_uuid not in parents:
            yield gpu, "?:?"


def gpu_label(gpu: Gpu) -> str:
    """Return the number by which the driver lists a GPU."""
    return "?" if gpu.index is None else str(gpu.index)


def short_name(name: str) -> str:
    """Return a GPU's name without the vendor's, for which its column has no room."""
    return name.removeprefix("NVIDIA ")


def gib(mib: float) -> str:
    """Return a size in GiB."""
    size = mib / MIB_IN_GIB
    return f"{size:.1f}".removesuffix(".0") if size < _SMALL_GIB else f"{size:.0f}"


def model_table(models: Sequence[Model], columns: int | None) -> list[Line]:
    """Draw them for a terminal of so many columns; None: for no terminal."""
    if not models:
        none = line(Piece("No models: none found in the caches, none declared", "dim"))
        return [none] if columns is None else wrap(none, columns)
    rows: list[Row] = []
    left_out: list[str] = []
    for kind, listed in groupby(sorted(models, key=_order), key=lambda model: model.kind):
        shown, more = _select_shown(tuple(listed), columns)
        rows += [_model_row(model) for model in shown]
        left_out += [f"{more} {kind}"] if more else []
    lines = render_table(Table(_MODEL_COLUMNS, rows, note="WHY"), columns)
    if left_out and columns is not None:
        words = Piece(f"and ready besides: {', '.join(left_out)}; --json lists them all", "dim")
        lines += wrap(line(words), columns)
    return lines


def host_facts(inventory: Inventory) -> Iterator[Fact]:
    """Yield names with their values."""
    host = inventory.host
    for name, words in (
        ("cores", _cores(host)),
        ("memory", _host_memory(host)),
        ("system", ", ".join(_system(host))),
        *(("disk", _disk(disk)) for disk in host.cache_disks),
        ("features", ", ".join(_features(inventory))),
    ):
        if words:
            yield name, line(words)


class NamedGpu(Protocol):
    """A GPU as the inventory or the API lists it."""

    @property
    def name(self) -> str:
        """The GPU model."""

    @property
    def health(self) -> str:
        """One of `Health`."""


class OfferedModel(Protocol):
    """A model as the inventory or the API lists it."""

    @property
    def enabled(self) -> bool:
        """Whether jobs may ask for it."""

    @property
    def status(self) -> str:
        """One of `ModelStatus`."""


class MeasuredGpu(Protocol):
    """A GPU's figures as the inventory or the API has them."""

    @property
    def memory_mb(self) -> int | None:
        """Memory in all."""

    @property
    def memory_used_mb(self) -> int | None:
        """Memory in use."""

    @property
    def utilization_percent(self) -> float | None:
        """How busy it is."""

    @property
    def temperature_c(self) -> float | None:
        """How hot it is."""


def memory_bar(gpu: MeasuredGpu, letters: Glyphs) -> Line:
    """Draw how full a GPU's memory is."""
    return bar(_share(gpu.memory_used_mb, gpu.memory_mb), _MEMORY_CELLS, letters)


def load_bar(gpu: MeasuredGpu, letters: Glyphs) -> Line:
    """Draw how busy a GPU is."""
    return bar(_share(gpu.utilization_percent, 100), _LOAD_CELLS, letters)


def temperature_piece(gpu: MeasuredGpu, letters: Glyphs, *, too_hot: bool = False) -> Piece:
    """A temperature, coloured where it is high; `too_hot`: the GPU is slowed down for it."""
    celsius = gpu.temperature_c
    if celsius is None:
        return Piece("?", "dim")
    style = "bold red" if too_hot or celsius >= _HOT_C else "yellow" if celsius >= _WARM_C else ""
    return Piece(f"{celsius:.0f}{letters.degree}C", style)


def health_piece(health: str) -> Piece:
    """A GPU's health in its colour; a word of a newer agent is as bad as unknown."""
    return Piece(health, _HEALTH_STYLES.get(health, "red"))


def gpus_by_number(numbers: Iterable[object]) -> str:
    """Name GPUs: `GPU 0`, or `GPUs 0, 3`."""
    which = [str(one) for one in numbers]
    return f"GPU{'' if len(which) == 1 else 's'} {', '.join(which)}"


def gpus_in_words(gpus: Iterable[NamedGpu]) -> str:
    """Say how many GPUs of which name there are, and how many are not healthy or are cordoned."""
    listed = list(gpus)
    names = Counter(gpu.name.removeprefix("NVIDIA ") for gpu in listed)
    unhealthy = sum(1 for gpu in listed if gpu.health != "ok")
    words = ", ".join(f"{count}x {name}" for name, count in names.items()) or "none"
    cordoned = sum(1 for gpu in listed if getattr(gpu, "cordoned", None))  # only a registry knows cordons
    counted = ((unhealthy, "not ok"), (cordoned, "cordoned"))
    notes = ", ".join(f"{count} {what}" for count, what in counted if count)
    return f"{words} ({notes})" if notes else words


def models_in_words(models: Iterable[OfferedModel]) -> str:
    """Say how many models are ready, and of how many where that is not all."""
    listed = list(models)
    ready = sum(1 for model in listed if model.enabled and model.status == "ready")
    return f"{ready}" if ready == len(listed) else f"{ready}/{len(listed)}"


def status_piece(status: str) -> Piece:
    """A status in its colour."""
    return Piece(status, STATUS_COLOURS.get(status, ""))


def _gpu_cells(gpu: Gpu, below: str | None, letters: Glyphs) -> Iterator[Line]:
    yield line(below or gpu_label(gpu))
    yield line("" if below is None else f"{letters.branch} ", _name(gpu, below))
    yield line(health_piece(gpu.health))
    yield _gpu_memory(gpu)
    yield memory_bar(gpu, letters)
    yield _figure(gpu.utilization_percent, "%")
    yield load_bar(gpu, letters)
    yield line(temperature_piece(gpu, letters, too_hot=any("thermal" in one for one in _slowed(gpu))))
    yield _power(gpu)
    yield line(Piece(gpu.uuid, "dim"))


def _name(gpu: Gpu, below: str | None) -> str:
    """A MIG device's name begins with its parent's, which is in the row above."""
    name = short_name(gpu.name)
    mig = name.find("MIG ")
    return name[mig:] if below is not None and mig > 0 else name


def _gpu_memory(gpu: Gpu) -> Line:
    if not gpu.memory_mb:
        return line(Piece("unknown", "dim"))
    total = f"{gib(gpu.memory_mb)} GiB"
    return line(total if gpu.memory_used_mb is None else f"{gib(gpu.memory_used_mb)}/{total}")


def _power(gpu: Gpu) -> Line:
    if gpu.power_w is None:
        return line(Piece("?", "dim"))
    limit = "" if gpu.power_limit_w is None else f"/{gpu.power_limit_w:.0f}"
    style = "yellow" if any("power" in one for one in _slowed(gpu)) else ""
    return line(Piece(f"{gpu.power_w:.0f}{limit} W", style))


def _figure(value: float | None, unit: str) -> Line:
    return line(Piece("?", "dim") if value is None else f"{value:.0f}{unit}")


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _note(gpu: Gpu) -> Line:
    """Return what a person should know of a GPU that is no fault of it."""
    slowed = _slowed(gpu)
    pieces = [
        Piece(f"clocks held down: {', '.join(slowed)}", "yellow") if slowed else None,
        Piece(f"{gpu.ecc_uncorrected} uncorrected memory errors", "yellow") if gpu.ecc_uncorrected else None,
        Piece("memory shared with the host", "dim") if gpu.memory_kind is MemoryKind.UNIFIED else None,
        Piece("asleep, and not woken for this", "dim") if gpu.asleep else None,
        Piece("part of the processor, not offered", "dim") if not gpu.offered else None,
        Piece("hidden by CUDA_VISIBLE_DEVICES", "yellow") if gpu.visible is False else None,
        _processes(gpu),
    ]
    return line(*separate(piece for piece in pieces if piece is not None))


def _slowed(gpu: Gpu) -> list[str]:
    """Why a GPU's clocks are lower than they could be."""
    return [each for each in gpu.throttle_reasons or () if each not in _NOT_SHOWN]


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


def size_in_words(count: int) -> str:
    """A size in bytes, in the unit of which there is one at the least."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} {_UNITS[-1]}"


def can_serve(model: Model) -> bool:
    """Whether jobs may ask for it."""
    return model.enabled and model.status is ModelStatus.READY


def count_broken(models: Iterable[Model]) -> int:
    """Count those that jobs could ask for, were they whole; what still loads or is off is not broken."""
    return sum(1 for model in models if model.enabled and model.status is ModelStatus.ERROR)


def _order(model: Model) -> tuple[str, bool, str, str]:
    return model.kind, can_serve(model), model.model_id, model.version


def _select_shown(models: tuple[Model, ...], columns: int | None) -> tuple[Iterable[Model], int]:
    ready = sum(map(can_serve, models))
    more = max(0, ready - SHOWN_READY)
    return (models, 0) if columns is None or more <= 1 else (models[: len(models) - more], more)


def _model_row(model: Model) -> Row:
    bytes_known = "" if model.size_bytes is None else size_in_words(model.size_bytes)
    return Row(
        (
            line(model.kind),
            line(model.model_id, *_languages(model)),
            line(model.version),
            line(bytes_known),
            line(Piece(model.source or "", "dim")),
            _model_state(model),
        ),
        line(Piece(model.detail, "yellow")) if model.detail else BLANK,
    )


def _languages(model: Model) -> Iterator[Piece]:
    pair = [language for language in (model.src_lang, model.tgt_lang) if language]
    if pair:
        yield Piece(f" ({' to '.join(pair)})", "dim")


def _model_state(model: Model) -> Line:
    off = "" if model.enabled else Piece(" disabled", "yellow")
    return line(Piece(model.status.value, MODEL_STATUS_STYLES[model.status]), off)


def _cores(host: Host) -> str:
    cores = f"{host.cpu_logical_cores}"
    if host.machine_logical_cores not in (None, host.cpu_logical_cores):
        cores += f" of the machine's {host.machine_logical_cores}"
    elif host.cpu_physical_cores not in (None, host.cpu_logical_cores):
        cores += f", {host.cpu_physical_cores} of them physical"
    used = "" if host.cpu_percent is None else f", {host.cpu_percent:.0f}% in use"
    return cores + used + ("" if host.load_1m is None else f", load {host.load_1m:.1f}")


def _host_memory(host: Host) -> str:
    memory = "unknown" if host.memory_total_mb is None else f"{gib(host.memory_total_mb)} GiB"
    if host.machine_memory_total_mb not in (None, host.memory_total_mb):
        memory += f" of the machine's {gib(host.machine_memory_total_mb or 0)} GiB"
    if host.memory_available_mb is None:
        return memory
    return f"{memory}, {gib(host.memory_available_mb)} GiB available"


def _system(host: Host) -> Iterator[str]:
    if host.os:
        yield host.os
    if host.kernel:
        yield f"kernel {host.kernel}"
    if host.virtualization and host.virtualization != "none":
        yield f"under {host.virtualization}"


def _disk(disk: CacheDisk) -> str:
    return f"{disk.free_bytes / _GIB:.0f} of {disk.total_bytes / _GIB:.0f} GiB free at {disk.path}"


def _features(inventory: Inventory) -> Iterator[str]:
    yield from (name for name, has in inventory.features_supported.items() if has)
    yield from inventory.advanced_features
