"""Nodes as a table for people, shared by `registry nodes` and `demo`."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

STATUS_STYLES: dict[str, str] = {
    "registering": "cyan",
    "ready": "green",
    "degraded": "yellow",
    "draining": "magenta",
    "offline": "red",
}

NO_NODES = "No node is registered. Start one: gpu-agent run --registry ws://HOST:8080/ws/node"


def node_table(nodes: Iterable[Mapping[str, Any]]) -> Table:
    """Draw nodes as `GET /v1/nodes` returns them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "STATUS", "REASON", "GPUS", "MODELS"):
        table.add_column(column, overflow="fold")
    table.add_column("JOBS", justify="right")
    table.add_column("LAST BEAT", justify="right")
    for node in nodes:
        table.add_row(
            Text(node["node_id"]),
            _status(node),
            Text(str(node.get("reason") or node["reason_code"])),
            Text(gpus_in_words(node["gpus"])),
            Text(_models_in_words(node["installed_models"])),
            f"{node['in_flight_jobs']}/{node['max_concurrent_jobs']}",
            _age(node["last_beat_age_seconds"]),
        )
    return table


def gpus_in_words(gpus: Iterable[Mapping[str, Any]]) -> str:
    """Say how many GPUs of which name there are, and how many of them are not well."""
    listed = list(gpus)
    names = Counter(str(gpu["name"]) for gpu in listed)
    unwell = sum(1 for gpu in listed if gpu.get("health", "ok") != "ok")
    words = ", ".join(f"{count}x {name}" for name, count in names.items()) or "none"
    return f"{words} ({unwell} not ok)" if unwell else words


def _status(node: Mapping[str, Any]) -> Text:
    status = str(node["status"])
    text = Text(status, style=STATUS_STYLES.get(status, ""))
    if status != "offline" and not node["connected"]:
        text.append(" (disconnected)", style="red")
    if node.get("cordoned"):
        text.append(" (cordoned)", style="yellow")
    if node.get("simulated"):
        text.append(" simulated", style="dim")
    return text


def _models_in_words(models: Iterable[Mapping[str, Any]]) -> str:
    listed = list(models)
    ready = sum(
        1 for model in listed if model.get("enabled", True) and model.get("status", "ready") == "ready"
    )
    return f"{ready} ready" if ready == len(listed) else f"{ready} of {len(listed)} ready"


def _age(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago"
