"""One node in full, as a page for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.nodes.event_words import event_line_ago
from gpu_agent.cli.nodes.facts import facts
from gpu_agent.cli.nodes.sheet import status_piece
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out

SHOWN_EVENTS = 10
_MIB_IN_GIB = 1024
_ENDLESS = 1_000_000

_FACTS = (Column(head=""), Column(head="", folds=True))
_GPUS = (
    Column(head="GPU", folds=True),
    Column(head="HEALTH"),
    Column(head="MEMORY", right=True),
    Column(head="LOAD", right=True, worth=3),
    Column(head="TEMP", right=True, worth=2),
    Column(head="POWER", right=True, worth=2),
    Column(head="UUID", worth=1),
)
_MODELS = (
    Column(head="MODEL", folds=True),
    Column(head="VERSION", folds=True),
    Column(head="STATE"),
    Column(head="KIND", worth=1),
)
_CHECKS = (Column(head="CHECK"), Column(head=""), Column(head="DETAIL", folds=True))


def node_page(node: Mapping[str, Any], columns: int | None, *, now: float) -> list[Line]:
    """Draw a node as `GET /v1/nodes/{id}` returns it."""
    blocks = [
        list(_headline(node, _ENDLESS if columns is None else columns)),
        laid_out(Sheet(_FACTS, [Row((_name(name), words)) for name, words in facts(node, now=now)]), columns),
        laid_out(Sheet(_GPUS, [_gpu(gpu) for gpu in node["gpus"]]), columns),
        laid_out(Sheet(_MODELS, [_model(model) for model in node["installed_models"]]), columns),
        laid_out(Sheet(_CHECKS, [_check(check) for check in node["checks"]]), columns),
        _history(node["events"], now),
    ]
    page: list[Line] = []
    for block in blocks:
        page += [*([BLANK] if page and block else []), *block]
    return page


def _headline(node: Mapping[str, Any], columns: int) -> Iterator[Line]:
    code = node["reason_code"]
    yield line(
        Piece(node["node_id"], "bold"), "  ", status_piece(node["status"]), Piece(f"  ({code})", "dim")
    )
    yield from wrapped(line(node["reason"]), columns)
    if node.get("clears_when"):
        yield from wrapped(line(Piece("Changes when: ", "bold"), node["clears_when"]), columns)


def _name(name: str) -> Line:
    return line(Piece(name, "dim"))


def _gpu(gpu: Mapping[str, Any]) -> Row:
    health = gpu.get("health", "ok")
    style = "green" if health == "ok" and gpu.get("usable", True) else "red"
    return Row(
        (
            line(str(gpu["name"]).removeprefix("NVIDIA ")),
            line(Piece(str(health), style), "" if gpu.get("usable", True) else Piece(" unusable", "red")),
            line(_memory(gpu)),
            line(_figure(gpu.get("utilization_percent"), "%")),
            line(_figure(gpu.get("temperature_c"), "°C")),
            line(_figure(gpu.get("power_w"), " W")),
            line(gpu.get("uuid") or ""),
        ),
        line(Piece("; ".join(gpu.get("reasons") or ()), "yellow")),
    )


def _memory(gpu: Mapping[str, Any]) -> str:
    total, used = gpu.get("memory_mb"), gpu.get("memory_used_mb")
    if not total:
        return "unknown"
    of = f"{total / _MIB_IN_GIB:.0f} GiB"
    return of if used is None else f"{used / _MIB_IN_GIB:.0f}/{of}"


def _figure(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.0f}{unit}"


def _model(model: Mapping[str, Any]) -> Row:
    state = str(model.get("status", "ready"))
    style = "green" if state == "ready" and model.get("enabled", True) else "yellow"
    off = "" if model.get("enabled", True) else Piece(" disabled", "yellow")
    return Row(
        (
            line(model["model_id"]),
            line(model["version"]),
            line(Piece(state, style), off),
            line(model.get("kind") or ""),
        )
    )


def _check(check: Mapping[str, Any]) -> Row:
    mark = Piece("ok", "green") if check["ok"] else Piece("FAILS", "bold red")
    return Row((line(check["name"]), line(mark), line(check["detail"])))


def _history(events: list[Mapping[str, Any]], now: float) -> list[Line]:
    if not events:
        return []
    told = [event_line_ago(event, now=now) for event in events[-SHOWN_EVENTS:]]
    return [line(Piece("LAST EVENTS" if len(events) > SHOWN_EVENTS else "EVENTS", "bold")), *told]
