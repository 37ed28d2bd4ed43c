"""One node in full, as a page. What is not known is left out, never guessed."""

from collections.abc import Iterator, Sequence

from gpu_agent.cli.output.inventory import gpus_in_words, status_piece
from gpu_agent.cli.output.table import Column, Fact, Row, Table, render_facts, render_table
from gpu_agent.cli.output.text import Line, Piece, join_blocks, line, separate, wrap
from gpu_agent.cli.output.units import duration_in_words, local_time
from gpu_agent.cli.registry.events import event_line_ago
from gpu_agent.wire.api import CheckView, GpuView, ModelView, NodeCheckView, NodeDetail, RegistryEvent
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY

SHOWN_EVENTS = 10
_MIB_IN_GIB = 1024
_GPU_COLUMNS = (
    Column(head="GPU", wraps=True),
    Column(head="HEALTH"),
    Column(head="USE", wraps=True),
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
_NODE_CHECK_COLUMNS = (
    Column(head="ADMISSION CHECK"),
    Column(head=""),
    Column(head="SCOPE", priority=1),
    Column(head="AGE", right=True, priority=2),
    Column(head="DETAIL", wraps=True),
)
_CHECK_COLUMNS = (Column(head="CHECK"), Column(head=""), Column(head="DETAIL", wraps=True))


def node_page(node: NodeDetail, columns: int | None, *, now: float) -> list[Line]:
    """Draw a node for a terminal of so many columns, None for no terminal; `now` is wall time."""
    return join_blocks(
        (
            list(_headline(node, columns)),
            render_facts(node_facts(node, now=now), columns),
            render_table(Table(_GPU_COLUMNS, [_gpu_row(gpu) for gpu in node.gpus]), columns),
            render_table(Table(_MODEL_COLUMNS, [_model_row(one) for one in node.installed_models]), columns),
            render_table(Table(_CHECK_COLUMNS, [_check_row(check) for check in node.checks]), columns),
            render_table(Table(_NODE_CHECK_COLUMNS, list(_node_check_rows(node, now))), columns),
            _history(node.events, now),
        )
    )


def _headline(node: NodeDetail, columns: int | None) -> Iterator[Line]:
    code = Piece(f"  ({node.reason_code})", "dim")
    yield line(Piece(node.node_id, "bold"), "  ", status_piece(node.status), code)
    yield from wrap(line(node.reason), columns)
    if node.clears_when:
        yield from wrap(line(Piece("Changes when: ", "bold"), node.clears_when), columns)


def _gpu_row(gpu: GpuView) -> Row:
    style = "green" if gpu.health == "ok" and gpu.usable else "red"
    return Row(
        (
            line(gpu.name.removeprefix("NVIDIA ")),
            line(Piece(gpu.health, style), Piece(_limit(gpu), "red")),
            _use(gpu),
            line(_memory(gpu)),
            line(_figure(gpu.utilization_percent, "%")),
            line(_figure(gpu.temperature_c, "°C")),
            line(_figure(gpu.power_w, " W")),
            line(gpu.uuid),
        ),
        line(Piece("; ".join(gpu.reasons), "yellow")),
    )


def _limit(gpu: GpuView) -> str:
    """Say which jobs its health keeps from a GPU."""
    if not gpu.usable:
        return " no new jobs" if NO_NEW_JOBS.intersection(gpu.reasons) else " unusable"
    return " jobs of one GPU only" if ONE_GPU_ONLY.intersection(gpu.reasons) else ""


def _use(gpu: GpuView) -> Line:
    """Say who has a GPU, or why no claim gets it; nothing where it is not usable and nobody has it."""
    jobs = [gpu.claimed_by] if gpu.claimed_by else [*gpu.shared_by]
    uses = [Piece(f"job {job}") for job in jobs]
    if gpu.held_for:
        uses.append(Piece(f"held for {gpu.held_for}", "yellow"))
    if gpu.cordoned:
        uses.append(Piece(gpu.cordoned, "yellow"))
    if not uses and gpu.usable:
        uses.append(Piece("in use without a claim", "yellow") if gpu.processes else Piece("free", "green"))
    return line(*separate(uses))


def _memory(gpu: GpuView) -> str:
    if not gpu.memory_mb:
        return "unknown"
    total = f"{gpu.memory_mb / _MIB_IN_GIB:.0f} GiB"
    return total if gpu.memory_used_mb is None else f"{gpu.memory_used_mb / _MIB_IN_GIB:.0f}/{total}"


def _figure(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.0f}{unit}"


def _model_row(model: ModelView) -> Row:
    style = "green" if model.status == "ready" and model.enabled else "yellow"
    off = "" if model.enabled else Piece(" disabled", "yellow")
    return Row(
        (
            line(model.model_id),
            line(model.version),
            line(Piece(model.status, style), off),
            line(model.kind or ""),
        )
    )


def _check_row(check: CheckView) -> Row:
    mark = Piece("ok", "green") if check.ok else Piece("FAILS", "bold red")
    return Row((line(check.name), line(mark), line(check.detail)))


def _node_check_rows(node: NodeDetail, now: float) -> Iterator[Row]:
    """Yield what failed first; a check that passed on several GPUs is one row."""
    checks = node.node_checks or ()
    indices = {gpu.uuid: f"GPU {place}" for place, gpu in enumerate(node.gpus)}
    for check in checks:
        if not check.ok:
            mark = Piece("FAILS", "bold red") if check.required else Piece("fails, not required", "yellow")
            yield _node_check_row(check, mark, indices.get(check.scope, check.scope), now=now)
    for name in dict.fromkeys(check.name for check in checks if check.ok):
        passed = [check for check in checks if check.name == name and check.ok]
        alone = len(passed) == 1
        scope = indices.get(passed[0].scope, passed[0].scope) if alone else f"{len(passed)} GPUs"
        yield _node_check_row(passed[0], Piece("ok", "green"), scope, now=now)


def _node_check_row(check: NodeCheckView, mark: Piece, scope: str, *, now: float) -> Row:
    age = duration_in_words(max(0.0, now - check.at))
    return Row((line(check.name), line(mark), line(scope), line(age), line(check.detail)))


def _history(events: Sequence[RegistryEvent], now: float) -> list[Line]:
    if not events:
        return []
    head = "LAST EVENTS" if len(events) > SHOWN_EVENTS else "EVENTS"
    return [line(Piece(head, "bold")), *(event_line_ago(one, now=now) for one in events[-SHOWN_EVENTS:])]


def node_facts(node: NodeDetail, *, now: float) -> Iterator[Fact]:
    """Yield names with their values, in the order in which a person asks."""
    for name, words in (
        ("since", _since(node, now)),
        ("link", _link(node)),
        ("jobs", _jobs(node)),
        ("drain", _drain(node, now)),
        ("cordon", _cordon(node)),
        ("gpus", line(gpus_in_words(node.gpus))),
        ("load", _load(node)),
        ("labels", _labels(node)),
        ("features", line(", ".join(node.features))),
        ("token", _token(node)),
        ("agent", _agent(node)),
        ("host", _host(node)),
    ):
        if words:
            yield name, words


def _since(node: NodeDetail, now: float) -> Line:
    before = f", {node.previous_status} before that" if node.previous_status else ""
    return line(f"{local_time(node.since)} ({duration_in_words(now - node.since)}){before}")


def _link(node: NodeDetail) -> Line:
    connected = Piece("connected", "green") if node.connected else Piece("not connected", "red")
    preposition = "from" if node.connected else "now, last from"
    where = f" {preposition} {node.address}" if node.address else ""
    age = node.last_heartbeat_age_seconds
    last = ", no heartbeat yet" if age is None else f", last heartbeat {duration_in_words(age)} ago"
    every, timeout = node.heartbeat_interval_seconds, node.heartbeat_timeout_seconds
    pace = f" (one every {every:g} s; offline after {timeout:g} s)"
    trip = node.round_trip_ms
    network = "" if trip is None or not node.connected else f", {round(trip, 2):g} ms there and back"
    return line(connected, where, network, last, pace)


def _jobs(node: NodeDetail) -> Line:
    claimed, running = set(node.claimed_jobs), node.running_jobs
    named = [
        f"{job} ({_job_state(claimed=job in claimed, runs=None if running is None else job in running)})"
        for job in sorted(claimed | set(running or ()))
    ]
    slots = f"{node.in_flight_jobs} of {node.max_concurrent_jobs} slots occupied"
    public = "; public jobs too" if node.accept_public_jobs else ""
    return line(slots, ": " if named else "", ", ".join(named), public)


def _job_state(*, claimed: bool, runs: bool | None) -> str:
    """`runs` is None where the node does not report its jobs."""
    if not claimed:
        return "runs without a claim"
    if runs is None:
        return "claimed"
    return "claimed, runs" if runs else "claimed, not begun"


def _drain(node: NodeDetail, now: float) -> Line:
    drain = node.drain
    if drain is None:
        return ()
    requester = "by an operator" if drain.by_operator else "by the node itself"
    why = f": {drain.reason}" if drain.reason else ""
    left = drain.deadline - now
    ends = left > 0 and node.status != "offline"
    return line(
        Piece(f"{requester}{why}", "magenta"),
        f"; offline in {duration_in_words(left)} at the latest" if ends else "",
    )


def _cordon(node: NodeDetail) -> Line:
    return () if node.cordoned is None else line(Piece(node.cordoned or "no reason given", "yellow"))


def _load(node: NodeDetail) -> Line:
    figures = (("CPU", node.cpu_percent), ("memory", node.mem_percent))
    known = [f"{name} {value:.0f} %" for name, value in figures if value is not None]
    age = node.probe_age_seconds
    return line(", ".join([*known, *([] if age is None else [f"GPUs read {duration_in_words(age)} ago"])]))


def _labels(node: NodeDetail) -> Line:
    pieces: list[object] = []
    for name, value in sorted({**node.labels, **node.granted_labels}.items()):
        granted = Piece(" (granted)", "dim") if name in node.granted_labels else ""
        pieces += [", " if pieces else "", f"{name}={value}", granted]
    return line(*pieces)


def _token(node: NodeDetail) -> Line:
    token = node.token
    if token is None:
        return line(Piece("none: nothing proves that this node is itself", "yellow"))
    joined = f", joined with {token.joined_by}" if token.joined_by else ""
    rotating = Piece("; it gets another one, and has not connected with that yet", "yellow")
    return line(f"{token.token_id}{joined}", rotating if token.rotating else "")


def _agent(node: NodeDetail) -> Line:
    facts = [
        *([f"version {node.agent_version}"] if node.agent_version else []),
        f"schema {node.capability_schema_version}",
        f"session {node.session_epoch}",
        *([f"workers at {node.endpoint}"] if node.endpoint else []),
    ]
    simulated = Piece(", simulated: these GPUs do not exist", "yellow")
    return line(", ".join(facts), simulated if node.simulated else "")


def _host(node: NodeDetail) -> Line:
    facts = [
        *([node.platform] if node.platform else []),
        f"{node.cpu_cores} cores, {node.memory_gb} GB memory",
        *([f"driver {node.driver_version}"] if node.driver_version else []),
        *([f"CUDA {node.cuda_version}"] if node.cuda_version else []),
    ]
    return line(", ".join(facts))
