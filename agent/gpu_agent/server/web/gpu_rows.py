"""The rows of a node's GPUs: health, claim, and each figure with a sparkline of the last 15 minutes.

A sparkline is the path of an SVG: a line, and dashes where nothing was known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.findings import gpu_number, jobs_of, placeable, shown_reasons, step_of
from gpu_agent.server.web.live import Part
from gpu_agent.server.web.rendering import gpu_url, render
from gpu_agent.server.web.tiles import status_of, tile_classes
from gpu_agent.server.web.visit import Visit
from gpu_agent.wire.api import GpuView, NodeDetail
from gpu_agent.wire.codes import GpuStatus, NodeStatus
from gpu_agent.wire.fleet_documents import GpuPointView

SECONDS = 900.0
WIDTH, HEIGHT = 100, 24
EDGE = 2
"""Room above and below: a line at the edge would be cut in half."""
GAP_SECONDS = 40.0
"""Points further apart are not joined: heartbeats were missed."""
COOLEST_C, HOTTEST_C = 20.0, 100.0
"""Between these a temperature is drawn."""
LEAST_POWER_W = 100.0
"""A card that idles is not drawn as if it worked."""

_MARKS = {GpuStatus.LOST: "l", GpuStatus.UNKNOWN: "q"}


@dataclass(frozen=True, slots=True)
class Action:
    """What a person may do on the page."""

    name: str
    href: str
    kind: str = ""
    """The class of its button."""


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Both paths; empty where there is nothing to draw."""

    line: str
    gaps: str

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """What a GPU's row shows."""

    gpu: GpuView
    number: str
    tile: str
    mark: str
    step: str
    """What to do about it; empty where nothing is to be done."""
    reasons: tuple[str, ...]
    jobs: tuple[str, ...]
    seconds: float | None
    """For how long its health has been as it is; None for a healthy one, and where it is unknown."""
    busy: Sparkline
    memory: Sparkline
    temperature: Sparkline
    power: Sparkline


@dataclass(frozen=True, slots=True)
class _Past:
    """The last 15 minutes of a node's GPUs."""

    points: Mapping[str, Sequence[GpuPointView]]
    """By UUID."""
    drawn_w: float
    """The power at the upper edge of each row."""


def gpu_parts(visit: Visit, node: NodeDetail, now: float) -> Iterator[Part]:
    """Yield the rows of a node's GPUs, without the parents of MIG devices."""
    registry = visit.registry
    record = registry.record(node.node_id)
    newest_at = None if record is None else record.gpu_history.newest_at
    offline = node.status == NodeStatus.OFFLINE
    past = cache(partial(_past_of, registry, node.node_id))  # for all rows, and only where one is rendered
    for place, gpu in enumerate(placeable(node.gpus)):
        word = "uncordon" if gpu.cordoned is not None else "cordon"
        action = Action(word.capitalize(), gpu_url(node.node_id, gpu.uuid, word))
        html = partial(
            _render_gpu,
            f"gpu-{place}",
            action if visit.person.may("operate") else None,
            row=partial(_gpu_row, gpu, gpu_number(gpu, place), past=past, now=now, offline=offline),
        )
        yield Part(
            f"gpu-{place}", (gpu, newest_at, offline), html, f"{visit.person.role.value} {node.node_id}"
        )


def _past_of(registry: RegistryService, node_id: str) -> _Past:
    history = registry.gpu_history(node_id)
    points = {} if history is None else {one.uuid: one.points for one in history.gpus}
    powers = (point.power_w or 0.0 for some in points.values() for point in some)
    return _Past(points, max(LEAST_POWER_W, 1.1 * max(powers, default=0.0)))


def _render_gpu(name: str, action: Action | None, *, row: Callable[[], GpuRow]) -> str:
    shown = row()
    return render("_gpu.html", id=name, row=shown, action=action, status=status_of(shown.gpu))


def _gpu_row(gpu: GpuView, number: str, *, past: Callable[[], _Past], now: float, offline: bool) -> GpuRow:
    points = past().points.get(gpu.uuid, ())

    def drawn(figure: str, lowest: float, highest: float | None) -> Sparkline:
        return sparkline([(one.at, getattr(one, figure)) for one in points], lowest, highest, now=now)

    is_degraded = gpu.health == "degraded" or bool(gpu.reasons)
    return GpuRow(
        gpu=gpu,
        number=number,
        tile=tile_classes(gpu, offline=offline),
        mark=_MARKS.get(status_of(gpu)) or ("d" if is_degraded else "ok"),
        step=step_of(gpu),
        reasons=shown_reasons(gpu.reasons),
        jobs=jobs_of(gpu),
        seconds=None if gpu.since is None else max(0.0, now - gpu.since),
        busy=drawn("utilization_percent", 0.0, 100.0),
        memory=drawn("memory_used_mb", 0.0, gpu.memory_mb),
        temperature=drawn("temperature_c", COOLEST_C, HOTTEST_C),
        power=drawn("power_w", 0.0, past().drawn_w),
    )


def sparkline(
    points: Sequence[tuple[float, float | None]], lowest: float, highest: float | None, *, now: float
) -> Sparkline:
    """Draw a figure over time, in Unix time; None is an unknown one. Nothing without a scale."""
    if highest is None or highest <= lowest:
        return Sparkline("", "")
    line: list[str] = []
    gaps: list[str] = []
    last: tuple[float, int, int] | None = None
    """When the figure was known last, and where that is drawn."""
    joined = False
    for at, value in points:
        x = round(WIDTH * (1 - (now - at) / SECONDS))
        if value is None or x < 0:
            joined = False
            continue
        share = min(1.0, max(0.0, (value - lowest) / (highest - lowest)))
        y = round(HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE))
        is_gap = last is not None and (not joined or at - last[0] > GAP_SECONDS)
        if is_gap and last is not None:
            gaps.append(f"M{last[1]} {last[2]}H{x}")
        line.append(f"{'M' if last is None or is_gap else 'L'}{x} {y}")
        last, joined = (at, x, y), True
    if last is not None and now - last[0] > GAP_SECONDS:
        gaps.append(f"M{last[1]} {last[2]}H{WIDTH}")
    if len(line) == 1 and last is not None:  # a single point is drawn as a short line
        line.append(f"h{1 if last[1] < WIDTH else -1}")
    return Sparkline("".join(line), "".join(gaps))
