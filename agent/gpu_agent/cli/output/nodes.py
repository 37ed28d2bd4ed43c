"""Nodes as a table, with GPUs, models and statuses in words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gpu_agent.cli.output.inventory import gpus_in_words, models_in_words, status_piece
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, separate
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.wire.api import NodeList, NodeSummary
from gpu_agent.wire.codes import NodeStatus

NO_NODES = (
    "No node is registered. Create a join token, gpu-agent registry token create --out FILE, and start one:\n"
    "gpu-agent run --registry wss://HOST:8080 --join-token-file FILE    (ws:// where it is not encrypted)"
)
AUTH_OFF = "auth is off: anybody who reaches this registry may act on it"
PLAINTEXT = "nothing is encrypted: who listens on the network can take tokens and act as their owners"
_COLUMNS = (
    Column(head="NODE"),
    Column(head="STATUS"),
    Column(head="GPUS", wraps=True),
    Column(head="MODELS", right=True, priority=1),
    Column(head="JOBS", right=True),
    Column(head="HEARTBEAT", right=True, priority=2),
)


def node_table(answer: NodeList, columns: int | None, *, now: float) -> list[Line]:
    """Draw nodes with the registry's warnings; on a terminal, with a summary."""
    if not answer.nodes:
        return warning_lines(answer)
    summed = [] if columns is None else [BLANK, line(Piece(fleet_summary(answer.nodes), "dim"))]
    return [*warning_lines(answer), *bare_node_table(answer.nodes, columns, now=now), *summed]


def warning_lines(answer: NodeList) -> list[Line]:
    """Draw what an operator must know before anything else."""
    warnings = [AUTH_OFF] if answer.auth == "off" else []
    warnings += [PLAINTEXT] if answer.plaintext else []
    return [line(Piece(words, "bold red")) for words in warnings]


def bare_node_table(nodes: Iterable[NodeSummary], columns: int | None, *, now: float) -> list[Line]:
    """Draw nothing but the table."""
    return render_table(Table(_COLUMNS, [_row(node, now) for node in nodes], note="NOTE"), columns)


def fleet_summary(nodes: Sequence[NodeSummary]) -> str:
    """Count nodes by status, and slots."""
    counted = Counter(node.status for node in nodes)
    listed = dict.fromkeys((*NodeStatus, *counted))  # a newer registry may send others
    statuses = ", ".join(f"{counted[status]} {status}" for status in listed if counted[status])
    eligible = [node for node in nodes if node.status == "ready" and node.connected]
    occupied = sum(node.in_flight_jobs for node in eligible)
    slots = sum(node.max_concurrent_jobs for node in eligible)
    count = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"
    return f"{count}: {statuses}; {occupied} of {slots} slots occupied"


def _row(node: NodeSummary, now: float) -> Row:
    age = node.last_heartbeat_age_seconds
    return Row(
        (
            line(node.node_id),
            line(status_piece(node.status), f" {duration_in_words(now - node.since)}"),
            line(gpus_in_words(node.gpus), Piece(" simulated", "dim") if node.simulated else ""),
            line(models_in_words(node.installed_models)),
            line(f"{node.in_flight_jobs}/{node.max_concurrent_jobs}"),
            line("-" if age is None else duration_in_words(age)),
        ),
        line(*separate(_notes(node))),
    )


def _notes(node: NodeSummary) -> Iterator[Piece]:
    """What an operator must know of a node besides its figures."""
    if node.status != "ready":
        yield Piece(node.reason or node.reason_code)
    if node.status != "offline" and not node.connected:
        yield Piece("disconnected", "red")
    if node.cordoned is not None:
        yield Piece(f"cordoned: {node.cordoned}" if node.cordoned else "cordoned", "yellow")
