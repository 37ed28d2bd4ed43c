"""Nodes as a table: a row says which machine it is, what is free there, and what is wrong with it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.cli.output.inventory import models_in_words, short_name, status_piece
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, separate, wrap
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.wire.api import GpuView, NodeList, NodeSummary
from gpu_agent.wire.codes import STATUS_COLOURS, NodeStatus, ReasonCode

NO_NODES = (
    "No node is registered. Create a join token, gpu-agent registry token create --out FILE, and start one:\n"
    "gpu-agent run --registry wss://HOST:8080 --join-token-file FILE    (ws:// where it is not encrypted)"
)
AUTH_OFF = "auth is off: anybody who reaches this registry may act on it"
PLAINTEXT = "nothing is encrypted: who listens on the network can take tokens and act as their owners"
_COLUMNS = (
    Column(head="HOST", wraps=True),
    Column(head="ID", wraps=True),
    Column(head="STATUS"),
    Column(head="GPUS", wraps=True),
    Column(head="MEMORY", right=True, priority=9),
    Column(head="LOAD", right=True, priority=10),
    Column(head="SLOTS", right=True),
    Column(head="MODELS", right=True, priority=7),
    Column(head="VERSION", priority=6),
    Column(head="AGE", right=True, priority=8),
)
_WIDE_COLUMNS = (
    *_COLUMNS,
    Column(head="CPU", right=True, priority=5),
    Column(head="RAM", right=True, priority=4),
    Column(head="HEARTBEAT", right=True, priority=3),
    Column(head="ADDRESS", priority=2),
    Column(head="LABELS", wraps=True, priority=1),
)
_DRAINED = frozenset({ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE})
"""A node that is offline for one of these is as its operator wants it."""
_AGE_COLUMNS = len("10 s")
"""A list that is redrawn must not lose a column when 9 s become 10 s."""
_MIB_IN_GIB = 1024
_NOT_IN_A_SHORT_NAME = re.compile(
    r"[ -](?:\d+GB|HBM\w*|SXM\d?|PCIe|OAM|MIG|Generation)\b|\b(?:GeForce|Tesla|AMD|Instinct) ",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ListStyle:
    """How an operator wants the list."""

    sort: str | None = None
    """One of `SORTS`."""
    wide: bool = False


DEFAULT_STYLE = ListStyle()


class GpuUse(StrEnum):
    """What a GPU is used for; the first that applies counts."""

    UNUSABLE = "not usable"
    IDLE = "idle"
    CLAIMED = "claimed"
    HELD = "held"
    UNCLAIMED = "without a claim"
    CORDONED = "cordoned"
    FREE = "free"


def gpu_use(gpu: GpuView) -> GpuUse:
    """Say what a GPU is used for."""
    applies = {
        GpuUse.UNUSABLE: not gpu.usable,
        GpuUse.IDLE: gpu.idle,
        GpuUse.CLAIMED: bool(gpu.claimed_by or gpu.shared_by),
        GpuUse.HELD: bool(gpu.held_for),
        GpuUse.CORDONED: gpu.cordoned is not None,
        GpuUse.UNCLAIMED: bool(gpu.processes),
    }
    return next((use for use, holds in applies.items() if holds), GpuUse.FREE)


def placeable_gpus(gpus: Sequence[GpuView]) -> list[GpuView]:
    """Return those that jobs could have: the parents of MIG devices take none."""
    parents = {gpu.parent_uuid for gpu in gpus}
    return [gpu for gpu in gpus if gpu.uuid not in parents]


def gpu_numbers(gpus: Sequence[GpuView]) -> dict[str, str]:
    """Number GPUs as their driver and the events do; the second MIG device of GPU 0 is `0:1`."""
    numbers = {
        gpu.uuid: str(place if gpu.index is None else gpu.index)
        for place, gpu in enumerate(gpus)
        if gpu.parent_uuid is None
    }
    devices: dict[str, int] = {}
    for gpu in gpus:
        if gpu.parent_uuid is not None:
            place = devices[gpu.parent_uuid] = devices.get(gpu.parent_uuid, -1) + 1
            parent = numbers.get(gpu.parent_uuid) or ("?" if gpu.index is None else gpu.index)
            numbers[gpu.uuid] = f"{parent}:{place}"
    return numbers


def node_name(node: NodeSummary) -> str:
    """Return its hostname and its id, for a sentence."""
    return f"{node.hostname} ({node.node_id})" if node.hostname else node.node_id


def takes_jobs(node: NodeSummary) -> bool:
    """Whether a node may get a job now."""
    return node.status == NodeStatus.READY and node.connected and node.cordoned is None


def node_table(
    answer: NodeList, columns: int | None, *, now: float, style: ListStyle = DEFAULT_STYLE
) -> list[Line]:
    """Draw nodes with the registry's warnings; on a terminal, with a summary."""
    if not answer.nodes:
        return warning_lines(answer)
    nodes = sorted_nodes(answer.nodes, style.sort)
    summed = [] if columns is None else [BLANK, *wrap(fleet_summary(nodes), columns)]
    return [*warning_lines(answer), *bare_node_table(nodes, columns, now=now, wide=style.wide), *summed]


def warning_lines(answer: NodeList) -> list[Line]:
    """Draw what an operator must know before anything else."""
    warnings = [AUTH_OFF] if answer.auth == "off" else []
    warnings += [PLAINTEXT] if answer.plaintext else []
    return [line(Piece(words, "bold red")) for words in warnings]


def bare_node_table(
    nodes: Iterable[NodeSummary], columns: int | None, *, now: float, wide: bool = False
) -> list[Line]:
    """Draw nothing but the table, in the order of the nodes."""
    listed = list(nodes)
    hosts = _host_names(listed, whole=wide or columns is None)
    shown = _WIDE_COLUMNS if wide else _COLUMNS
    rows = [
        Row(
            [line(Piece(host, "bold")), *_cells(node, now, wide=wide)][: len(shown)],
            line(*separate(_notes(node, in_pipe=columns is None))),
        )
        for node, host in zip(listed, hosts, strict=True)
    ]
    return render_table(Table(shown, rows, note="NOTE"), columns)


def fleet_summary(nodes: Sequence[NodeSummary]) -> Line:
    """Count nodes by status, free GPUs, and slots; what is wrong stands out."""
    counted = Counter(node.status for node in nodes)
    listed = dict.fromkeys((*NodeStatus, *counted))  # a newer registry may send others
    statuses = ", ".join(f"{counted[status]} {status}" for status in listed if counted[status])
    able = [node for node in nodes if takes_jobs(node)]
    slots = sum(node.max_concurrent_jobs for node in able)
    gpus = [gpu for node in nodes for gpu in placeable_gpus(node.gpus)]
    simulated = sum(node.simulated for node in nodes)
    shown = "all" if simulated == len(nodes) else simulated
    count = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"
    pieces = [Piece(f"{count}: {statuses}; {sum(map(count_free, able))} of {len(gpus)} GPUs free", "dim")]
    for what, number in _count_unusable(gpus).items():
        pieces += [Piece(", ", "dim"), Piece(f"{number} {what}", "red")]
    occupied = sum(node.in_flight_jobs for node in able)
    pieces.append(Piece(f"; {occupied} of {slots} slots occupied", "dim"))
    if simulated:
        pieces += [Piece("; ", "dim"), Piece(f"{shown} simulated", "magenta")]
    return line(*pieces)


def count_free(node: NodeSummary) -> int:
    """Count the GPUs that a claim could get now."""
    if not takes_jobs(node):
        return 0
    return sum(gpu_use(gpu) is GpuUse.FREE for gpu in placeable_gpus(node.gpus))


def short_model(name: str) -> str:
    """Return a GPU's name without vendor, memory and form: `H100`, `RTX 4090`, `A100 1g.10gb`."""
    return _NOT_IN_A_SHORT_NAME.sub("", short_name(name)).strip() or name


def node_status(node: NodeSummary) -> Piece:
    """Draw the status; a ready node with a fault is not as green as one without."""
    whole = all(gpu.health == "ok" and gpu.usable for gpu in placeable_gpus(node.gpus))
    if node.status == NodeStatus.READY and not (takes_jobs(node) and whole):
        return Piece(node.status, "yellow")
    if node.reason_code in _DRAINED:
        return Piece(node.status, STATUS_COLOURS[NodeStatus.DRAINING])
    return status_piece(node.status)


def gpu_names(gpus: Sequence[GpuView], name: Callable[[str], str]) -> str:
    """List GPUs by their names, counted."""
    return ", ".join(f"{count}x {each}" for each, count in Counter(name(gpu.name) for gpu in gpus).items())


def gpu_marks(gpus: Sequence[GpuView]) -> Iterator[Piece]:
    """Yield how many GPUs are not as they should be."""
    for health, count in _count_unusable(gpus).items():
        yield from (Piece(", "), Piece(f"{count} {health}", "bold red"))
    uses = Counter(map(gpu_use, gpus))
    for use in (GpuUse.HELD, GpuUse.IDLE, GpuUse.CORDONED, GpuUse.UNCLAIMED):
        if uses[use]:
            yield from (Piece(", "), Piece(f"{uses[use]} {use.value}", "yellow"))


def _gpu_cell(node: NodeSummary, name: Callable[[str], str]) -> Line:
    gpus = placeable_gpus(node.gpus)
    if not gpus:
        return line(Piece("none", "red"))
    several = len({name(gpu.name) for gpu in gpus}) > 1
    words = gpu_names(gpus, name) if several else name(gpus[0].name)
    return line(f"{count_free(node)}/{len(gpus)} {words}", *gpu_marks(gpus))


def _count_unusable(gpus: Iterable[GpuView]) -> Counter[str]:
    """Count GPUs that take no job by their health; a healthy one that takes none is `not usable`."""
    return Counter(
        gpu.health if gpu.health != "ok" else GpuUse.UNUSABLE.value
        for gpu in gpus
        if gpu_use(gpu) is GpuUse.UNUSABLE
    )


def _cells(node: NodeSummary, now: float, *, wide: bool) -> Iterator[Line]:
    age = node.last_heartbeat_age_seconds
    yield line(node.node_id)
    yield line(node_status(node))
    yield _gpu_cell(node, short_name if wide else short_model)
    yield line(_memory(node))
    yield line(_percent(_load(node)))
    yield line(f"{node.in_flight_jobs}/{node.max_concurrent_jobs}")
    yield line(models_in_words(node.installed_models))
    yield line(node.agent_version or "-")
    yield line(duration_in_words(now - node.since).rjust(_AGE_COLUMNS))
    yield line(_percent(node.cpu_percent))
    yield line(_percent(node.mem_percent))
    yield line("-" if age is None else duration_in_words(age))
    yield line(node.address or "-")
    yield line(" ".join(f"{name}={value}" for name, value in sorted(node.labels.items())) or "-")


def _memory(node: NodeSummary) -> str:
    known = [gpu for gpu in _whole_gpus(node) if gpu.memory_mb]
    if not known:
        return "-"
    total = f"{sum(gpu.memory_mb or 0 for gpu in known) / _MIB_IN_GIB:.0f}"
    used = [gpu.memory_used_mb for gpu in known if gpu.memory_used_mb is not None]
    return f"{sum(used) / _MIB_IN_GIB:.0f}/{total} GiB" if used else f"{total} GiB"


def _memory_share(node: NodeSummary) -> float:
    known = [gpu for gpu in _whole_gpus(node) if gpu.memory_mb]
    return sum(gpu.memory_used_mb or 0 for gpu in known) / (sum(gpu.memory_mb or 0 for gpu in known) or 1)


def _load(node: NodeSummary) -> float | None:
    """Return how busy the GPUs are in the mean, by those whose figure is known."""
    known = [gpu.utilization_percent for gpu in _whole_gpus(node) if gpu.utilization_percent is not None]
    return sum(known) / len(known) if known else None


def _whole_gpus(node: NodeSummary) -> Iterator[GpuView]:
    """Yield GPUs without the MIG devices of those that are listed: their parents' figures hold theirs."""
    listed = {gpu.uuid for gpu in node.gpus}
    return (gpu for gpu in node.gpus if gpu.parent_uuid not in listed)


def _percent(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.0f}%"


def _notes(node: NodeSummary, *, in_pipe: bool) -> Iterator[Piece]:
    """What an operator must know of a node besides its figures."""
    if node.status != NodeStatus.READY:
        yield Piece(node.reason or node.reason_code)
    if node.status != NodeStatus.OFFLINE and not node.connected:
        age = node.last_heartbeat_age_seconds
        silent = "" if age is None else f": last heartbeat {duration_in_words(age)} ago"
        yield Piece(f"disconnected{silent}", "red")
    if node.cordoned is not None:
        yield Piece(f"cordoned: {node.cordoned}" if node.cordoned else "cordoned", "yellow")
    if any("gpu_uuid_duplicate" in gpu.reasons for gpu in node.gpus):
        yield Piece("another node declares its GPUs", "yellow")
    if node.simulated and in_pipe:  # a terminal has it in the summary
        yield Piece("simulated", "magenta")


def _host_names(nodes: Sequence[NodeSummary], *, whole: bool) -> list[str]:
    """Return hostnames, on a terminal up to the first dot where that still distinguishes them."""
    full = [node.hostname or "-" for node in nodes]
    first = [name if _is_number(name) else name.partition(".")[0] for name in full]
    return full if whole or len(set(first)) < len(set(full)) else first


def _is_number(name: str) -> bool:
    """Whether a hostname is an address."""
    return name.replace(".", "").isdigit() or ":" in name


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sort `gpu-2` before `gpu-10`."""
    parts = re.split(r"(\d{1,18})", name.lower())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _name_order(node: NodeSummary) -> tuple[bool, list[tuple[int, str]], str]:
    return node.hostname is None, _in_order(node.hostname or ""), node.node_id


def urgency(node: NodeSummary) -> tuple[int, bool, int]:
    """Sort key: nodes that need an operator come first, those of a newer registry's status before them."""
    rank = {status: place for place, status in enumerate(STATUS_COLOURS)}
    unusable = sum(not gpu.usable for gpu in placeable_gpus(node.gpus))
    return rank.get(node.status, -1), node.connected, -unusable


SORTS: Mapping[str, Callable[[NodeSummary], object]] = {
    "host": lambda _: 0,
    "id": lambda node: node.node_id,
    "status": urgency,
    "gpus": lambda node: -count_free(node),
    "memory": lambda node: -_memory_share(node),
    "load": lambda node: -(_load(node) or 0.0),
    "slots": lambda node: node.in_flight_jobs - node.max_concurrent_jobs,
    "models": lambda node: -sum(one.enabled and one.status == "ready" for one in node.installed_models),
    "version": lambda node: _in_order(node.agent_version),
    "age": lambda node: node.since,
}
"""By what a list may be sorted; nodes that are equal by it are sorted by hostname, then id."""


def sorted_nodes(nodes: Iterable[NodeSummary], column: str | None) -> list[NodeSummary]:
    """Sort nodes by a column, by hostname where none is named."""
    by_name = sorted(nodes, key=_name_order)
    return sorted(by_name, key=SORTS[column or "host"])  # type: ignore[arg-type]
