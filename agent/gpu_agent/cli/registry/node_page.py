"""One node in full, as a page. What is not known is left out, never guessed."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.output.nodes import gpus_in_words, status_piece
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, wrap
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.cli.registry.events import event_line_ago

SHOWN_EVENTS = 10
_MIB_IN_GIB = 1024
_ENDLESS = 1_000_000

_FACT_COLUMNS = (Column(head=""), Column(head="", wraps=True))
_GPU_COLUMNS = (
    Column(head="GPU", wraps=True),
    Column(head="HEALTH"),
    Column(head="MEMORY", right=True),
    Column(head="LOAD", right=True, priority=3),
    Column(head="TEMP", right=True, priority=2),
    Column(head="POWER", right=True, priority=2),
    Column(head="UUID", priority=1),
)
_MODEL_COLUMNS = (
    Column(head="MODEL", wraps=True),
    Column(head="VERSION", wraps=True),
    Column(head="STATE"),
    Column(head="KIND", priority=1),
)
_CHECK_COLUMNS = (Column(head="CHECK"), Column(head=""), Column(head="DETAIL", wraps=True))


def node_page(node: Mapping[str, Any], columns: int | None, *, now: float) -> list[Line]:
    """Draw a node as `GET /v1/nodes/{id}` returns it."""
    blocks = [
        list(_headline(node, _ENDLESS if columns is None else columns)),
        render_table(
            Table(_FACT_COLUMNS, [Row((_name(name), words)) for name, words in node_facts(node, now=now)]),
            columns,
        ),
        render_table(Table(_GPU_COLUMNS, [_gpu_row(gpu) for gpu in node["gpus"]]), columns),
        render_table(
            Table(_MODEL_COLUMNS, [_model_row(model) for model in node["installed_models"]]), columns
        ),
        render_table(Table(_CHECK_COLUMNS, [_check_row(check) for check in node["checks"]]), columns),
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
    yield from wrap(line(node["reason"]), columns)
    if node.get("clears_when"):
        yield from wrap(line(Piece("Changes when: ", "bold"), node["clears_when"]), columns)


def _name(name: str) -> Line:
    return line(Piece(name, "dim"))


def _gpu_row(gpu: Mapping[str, Any]) -> Row:
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


def _model_row(model: Mapping[str, Any]) -> Row:
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


def _check_row(check: Mapping[str, Any]) -> Row:
    mark = Piece("ok", "green") if check["ok"] else Piece("FAILS", "bold red")
    return Row((line(check["name"]), line(mark), line(check["detail"])))


def _history(events: list[Mapping[str, Any]], now: float) -> list[Line]:
    if not events:
        return []
    told = [event_line_ago(event, now=now) for event in events[-SHOWN_EVENTS:]]
    return [line(Piece("LAST EVENTS" if len(events) > SHOWN_EVENTS else "EVENTS", "bold")), *told]


Fact = tuple[str, Line]


def node_facts(node: Mapping[str, Any], *, now: float) -> Iterator[Fact]:
    """Yield names and what stands behind them, in the order in which a person asks."""
    for name, words in (
        ("since", _since(node, now)),
        ("link", _link(node)),
        ("jobs", _jobs(node)),
        ("drain", _drain(node, now)),
        ("cordon", _cordon(node)),
        ("gpus", line(gpus_in_words(node["gpus"]))),
        ("load", _load(node)),
        ("labels", _labels(node)),
        ("features", line(", ".join(node.get("features") or ()))),
        ("token", _token(node)),
        ("agent", _agent(node)),
        ("host", _host(node)),
    ):
        if words:
            yield name, words


def _since(node: Mapping[str, Any], now: float) -> Line:
    before = f", {node['previous_status']} before that" if node.get("previous_status") else ""
    return line(f"{local_time(node['since'])} ({duration_in_words(now - node['since'])}){before}")


def _link(node: Mapping[str, Any]) -> Line:
    connected = Piece("connected", "green") if node["connected"] else Piece("not connected", "red")
    preposition = "from" if node["connected"] else "now, last from"
    where = f" {preposition} {node['address']}" if node.get("address") else ""
    age = node["last_heartbeat_age_seconds"]
    beat = ", no beat yet" if age is None else f", last beat {duration_in_words(age)} ago"
    every, timeout = node.get("heartbeat_interval_seconds"), node.get("heartbeat_timeout_seconds")
    pace = (
        "" if every is None or timeout is None else f" (one every {every:g} s; offline after {timeout:g} s)"
    )
    away = node.get("round_trip_ms")
    network = "" if away is None or not node["connected"] else f", {round(away, 2):g} ms there and back"
    return line(connected, where, network, beat, pace)


def _jobs(node: Mapping[str, Any]) -> Line:
    claimed, running = set(node.get("claimed_jobs") or ()), node.get("running_jobs")
    told = f"{node['in_flight_jobs']} of {node['max_concurrent_jobs']} places taken"
    named = [
        f"{job} ({_job_state(job in claimed, running is None or job in running, told=running is not None)})"
        for job in sorted(claimed | set(running or ()))
    ]
    public = "; public jobs too" if node.get("accept_public_jobs") else ""
    return line(told, ": " if named else "", ", ".join(named), public)


def _job_state(claimed: bool, running: bool, *, told: bool) -> str:  # noqa: FBT001 - two facts of one job
    if not claimed:
        return "runs without a claim"
    if not told:
        return "claimed"
    return "claimed, runs" if running else "claimed, not begun"


def _drain(node: Mapping[str, Any], now: float) -> Line:
    drain = node.get("drain")
    if not drain:
        return ()
    who = "by an operator" if drain["by_operator"] else "by the node itself"
    why = f": {drain['reason']}" if drain.get("reason") else ""
    left = drain["deadline"] - now
    when = (
        f"; offline in {duration_in_words(left)} at the latest"
        if left > 0 and node["status"] != "offline"
        else ""
    )
    return line(Piece(f"{who}{why}", "magenta"), when)


def _cordon(node: Mapping[str, Any]) -> Line:
    cordoned = node.get("cordoned")
    return () if cordoned is None else line(Piece(str(cordoned) or "no reason given", "yellow"))


def _load(node: Mapping[str, Any]) -> Line:
    figures = (("CPU", node.get("cpu_percent")), ("memory", node.get("mem_percent")))
    known = [f"{name} {value:.0f} %" for name, value in figures if value is not None]
    age = node.get("probe_age_seconds")
    return line(", ".join([*known, *([] if age is None else [f"GPUs read {duration_in_words(age)} ago"])]))


def _labels(node: Mapping[str, Any]) -> Line:
    granted = node.get("granted_labels") or {}
    pieces: list[object] = []
    for name, value in sorted({**(node.get("labels") or {}), **granted}.items()):
        pieces += [
            ", " if pieces else "",
            f"{name}={value}",
            Piece(" (granted)", "dim") if name in granted else "",
        ]
    return line(*pieces)


def _token(node: Mapping[str, Any]) -> Line:
    if "token" not in node:
        return ()  # an older registry says nothing of it
    token = node["token"]
    if not token:
        return line(Piece("none: nothing proves that this node is itself", "yellow"))
    joined = f", joined by {token['joined_by']}" if token["joined_by"] else ""
    rotating = Piece("; it is to have another, and has not connected with that yet", "yellow")
    return line(f"{token['token_id']}{joined}", rotating if token["rotating"] else "")


def _agent(node: Mapping[str, Any]) -> Line:
    told = [f"version {node['agent_version']}"] if node.get("agent_version") else []
    if node.get("capability_schema_version"):
        told.append(f"schema {node['capability_schema_version']}")
    if node.get("session_epoch") is not None:
        told.append(f"session {node['session_epoch']}")
    if node.get("endpoint"):
        told.append(f"workers at {node['endpoint']}")
    return line(
        ", ".join(told),
        Piece(", simulated: these GPUs do not exist", "yellow") if node.get("simulated") else "",
    )


def _host(node: Mapping[str, Any]) -> Line:
    told = [str(node["platform"])] if node.get("platform") else []
    if node.get("cpu_cores") is not None:
        told.append(f"{node['cpu_cores']} cores, {node['memory_gb']} GB memory")
    for name, what in (("driver_version", "driver"), ("cuda_version", "CUDA")):
        if node.get(name):
            told.append(f"{what} {node[name]}")
    return line(", ".join(told))


def local_time(at: float) -> str:
    """A moment by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
