"""Nodes as a table, with GPUs, models and statuses in words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line
from gpu_agent.cli.output.units import duration_in_words

STATUS_STYLES: dict[str, str] = {
    "registering": "cyan",
    "ready": "green",
    "degraded": "yellow",
    "draining": "magenta",
    "offline": "red",
}

NO_NODES = (
    "No node is registered. Make a join token, gpu-agent registry token create --out FILE, and start one:\n"
    "gpu-agent run --registry wss://HOST:8080 --join-token-file FILE    (ws:// where it is not encrypted)"
)
AUTH_OFF = "auth is off: anybody who reaches this registry may act on it"
PLAINTEXT = "nothing is encrypted: whoever listens on the network can take tokens and act as their owners"
_COLUMNS = (
    Column(head="NODE"),
    Column(head="STATUS"),
    Column(head="GPUS", wraps=True),
    Column(head="MODELS", right=True, priority=1),
    Column(head="JOBS", right=True),
    Column(head="BEAT", right=True, priority=2),
)
_OF_STATUSES = tuple(STATUS_STYLES)


def warning_lines(answer: Mapping[str, Any]) -> list[Line]:
    """What has to be said before anything else."""
    said = [
        AUTH_OFF if answer.get("auth") == "off" else None,
        PLAINTEXT if answer.get("plaintext") else None,
    ]
    return [line(Piece(words, "bold red")) for words in said if words is not None]


def node_table(answer: Mapping[str, Any], columns: int | None, *, now: float) -> list[Line]:
    """Draw nodes as `GET /v1/nodes` returns them; on a terminal, with what they come to."""
    nodes = answer["nodes"]
    if not nodes:
        return warning_lines(answer)
    summed = [] if columns is None else [BLANK, line(Piece(fleet_summary(nodes), "dim"))]
    return [*warning_lines(answer), *bare_node_table(nodes, columns, now=now), *summed]


def bare_node_table(nodes: Iterable[Mapping[str, Any]], columns: int | None, *, now: float) -> list[Line]:
    """Draw nothing but the table."""
    return render_table(Table(_COLUMNS, [_node_row(node, now) for node in nodes], note="NOTE"), columns)


def fleet_summary(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Count nodes by status, and places."""
    counted = Counter(str(node["status"]) for node in nodes)
    statuses = ", ".join(f"{counted[status]} {status}" for status in _OF_STATUSES if counted[status])
    able = [node for node in nodes if node["status"] == "ready" and node["connected"]]
    taken = sum(node["in_flight_jobs"] for node in able)
    places = sum(node["max_concurrent_jobs"] for node in able)
    return (
        f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}: {statuses}; {taken} of {places} places taken"
    )


def gpus_in_words(gpus: Iterable[Mapping[str, Any]]) -> str:
    """Say how many GPUs of which name there are, and how many of them are not well."""
    listed = list(gpus)
    names = Counter(str(gpu["name"]).removeprefix("NVIDIA ") for gpu in listed)
    unwell = sum(1 for gpu in listed if gpu.get("health", "ok") != "ok")
    words = ", ".join(f"{count}x {name}" for name, count in names.items()) or "none"
    return f"{words} ({unwell} not ok)" if unwell else words


def models_in_words(models: Iterable[Mapping[str, Any]]) -> str:
    """Say how many models are ready, and of how many where that is not all."""
    listed = list(models)
    ready = sum(
        1 for model in listed if model.get("enabled", True) and model.get("status", "ready") == "ready"
    )
    return f"{ready}" if ready == len(listed) else f"{ready}/{len(listed)}"


def status_piece(status: object) -> Piece:
    """A status in its colour."""
    return Piece(str(status), STATUS_STYLES.get(str(status), ""))


def _node_row(node: Mapping[str, Any], now: float) -> Row:
    since = node.get("since")
    age = "" if since is None else f" {duration_in_words(now - since)}"
    return Row(
        (
            line(node["node_id"]),
            line(status_piece(node["status"]), age),
            line(gpus_in_words(node["gpus"]), Piece(" simulated", "dim") if node.get("simulated") else ""),
            line(models_in_words(node["installed_models"])),
            line(f"{node['in_flight_jobs']}/{node['max_concurrent_jobs']}"),
            line(_heartbeat_age(node["last_heartbeat_age_seconds"])),
        ),
        line(*_separate(_notes(node))),
    )


def _notes(node: Mapping[str, Any]) -> Iterator[Piece]:
    """What an operator must know of a node besides its figures."""
    if node["status"] != "ready":
        yield Piece(str(node.get("reason") or node["reason_code"]))
    if node["status"] != "offline" and not node["connected"]:
        yield Piece("disconnected", "red")
    if node.get("cordoned") is not None:
        yield Piece(f"cordoned: {node['cordoned']}" if node["cordoned"] else "cordoned", "yellow")


def _separate(pieces: Iterable[Piece]) -> Iterator[Piece]:
    for place, piece in enumerate(pieces):
        if place:
            yield Piece("; ")
        yield piece


def _heartbeat_age(seconds: float | None) -> str:
    return "-" if seconds is None else duration_in_words(seconds)
