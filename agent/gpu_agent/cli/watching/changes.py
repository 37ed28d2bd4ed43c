"""What changed from one list of nodes to the next, as lines. Figures that always move are no change."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.nodes.sheet import gpus_in_words, models_in_words, status_piece

Node = Mapping[str, Any]
Said = tuple[object, ...]

_COUNTED = (("gpus", "GPUs", gpus_in_words), ("installed_models", "models ready", models_in_words))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a line for each thing that changed between two answers of `GET /v1/nodes`, node by node."""
    was = {node["node_id"]: node for node in before["nodes"]}
    now = {node["node_id"]: node for node in after["nodes"]}
    for node_id in sorted({*was, *now}):
        for told in _of(was.get(node_id), now.get(node_id)):
            yield line(f"{node_id}  ", *told)


def _of(was: Node | None, now: Node | None) -> Iterator[Said]:
    if now is None:
        yield ("no longer listed",)
    elif was is None:
        yield ("listed: ", status_piece(now["status"]), *_why(now))
    else:
        yield from _of_status(was, now)
        yield from _of_openness(was, now)
        yield from _of_figures(was, now)


def _of_status(was: Node, now: Node) -> Iterator[Said]:
    if was["status"] != now["status"]:
        yield (f"{was['status']} → ", status_piece(now["status"]), *_why(now))
    elif now["status"] != "ready" and was["reason_code"] != now["reason_code"]:
        yield ("still ", status_piece(now["status"]), *_why(now))


def _of_openness(was: Node, now: Node) -> Iterator[Said]:
    if was["connected"] != now["connected"] and now["status"] != "offline":
        yield (Piece("connected again", "green") if now["connected"] else Piece("disconnected", "red"),)
    if was.get("cordoned") != now.get("cordoned"):
        yield (_cordon(now),)


def _of_figures(was: Node, now: Node) -> Iterator[Said]:
    for name, what, words in _COUNTED:
        if words(was[name]) != words(now[name]):
            yield (f"{what}: {words(was[name])} → {words(now[name])}",)
    if was["in_flight_jobs"] != now["in_flight_jobs"]:
        yield (f"jobs: {was['in_flight_jobs']} → {now['in_flight_jobs']} of {now['max_concurrent_jobs']}",)


def _why(node: Node) -> Said:
    return (f": {node.get('reason') or node['reason_code']}",)


def _cordon(node: Node) -> Piece:
    if node.get("cordoned") is None:
        return Piece("uncordoned", "green")
    return Piece(f"cordoned: {node['cordoned']}" if node["cordoned"] else "cordoned", "yellow")
