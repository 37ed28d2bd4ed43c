"""One node in full, as a page. What is not known is left out, never guessed."""

import re
from collections.abc import Iterator, Mapping, Sequence

from gpu_agent.cli.output.inventory import (
    health_piece,
    load_bar,
    memory_bar,
    short_name,
    temperature_piece,
)
from gpu_agent.cli.output.nodes import (
    GpuUse,
    count_free,
    gpu_marks,
    gpu_names,
    gpu_numbers,
    gpu_use,
    node_status,
    placeable_gpus,
    takes_jobs,
)
from gpu_agent.cli.output.table import Column, Fact, Row, Table, render_facts, render_table
from gpu_agent.cli.output.text import (
    UNICODE_GLYPHS,
    Glyphs,
    Line,
    Piece,
    join_blocks,
    line,
    line_width,
    separate,
    wrap,
    wrap_after,
)
from gpu_agent.cli.output.units import clock, duration_in_words
from gpu_agent.cli.registry.events import event_pieces
from gpu_agent.probe.health.reasons import REASONS, how_to
from gpu_agent.wire.api import CheckView, GpuView, ModelView, NodeCheckView, NodeDetail, RegistryEvent
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY

SHOWN_EVENTS = 10
_LEAST_UUID_LENGTH = 8
"""A shorter UUID may be a word of any sentence."""
_MIB_IN_GIB = 1024
_SHORT_UUID = len("GPU-5f2a8c1e")
"""A shortened UUID has so many letters, or as many as distinguish the GPUs of its node."""
_GPU_COLUMNS = (
    Column(head="GPU"),
    Column(head="NAME", wraps=True),
    Column(head="HEALTH"),
    Column(head="USE", wraps=True),
    Column(head="MEMORY", right=True, priority=7),
    Column(head="", priority=2),
    Column(head="LOAD", right=True, priority=6),
    Column(head="", priority=1),
    Column(head="TEMP", right=True, priority=5),
    Column(head="POWER", right=True, priority=4),
    Column(head="UUID", priority=8),
)
_NAME = 1
_BARS = (5, 7)
_MODEL_COLUMNS = (
    Column(head="MODEL", wraps=True),
    Column(head="VERSION", wraps=True),
    Column(head="STATE"),
    Column(head="KIND", priority=1),
)
_ADMISSION_COLUMNS = (
    Column(head="ADMISSION CHECK", wraps=True),
    Column(head=""),
    Column(head="OF", wraps=True),
    Column(head="AGE", right=True, priority=2),
    Column(head="DETAIL", wraps=True),
)
_FAULT_COLUMNS = (Column(head="REASON"), Column(head="GPUS", wraps=True), Column(head="MEANING", wraps=True))
_CHECK_COLUMNS = (Column(head="HEALTH CHECK"), Column(head=""), Column(head="DETAIL", wraps=True))


def node_page(
    node: NodeDetail, columns: int | None, letters: Glyphs = UNICODE_GLYPHS, *, now: float
) -> list[Line]:
    """Draw a node for a terminal of so many columns, None for no terminal; `now` is wall time."""
    numbers = gpu_numbers(node.gpus)
    return join_blocks(
        (
            list(_headline(node, columns)),
            render_facts(node_facts(node, now=now), columns),
            _gpu_lines(node, numbers, columns=columns, letters=letters),
            _gpu_faults(node.gpus, numbers, columns),
            render_table(Table(_MODEL_COLUMNS, [_model_row(one) for one in node.installed_models]), columns),
            render_table(
                Table(_CHECK_COLUMNS, [_check_row(check) for check in node.checks if not check.ok]), columns
            ),
            render_table(Table(_ADMISSION_COLUMNS, list(_admission_rows(node, numbers, now=now))), columns),
            _history(node.events, numbers, columns, now=now),
        )
    )


def _headline(node: NodeDetail, columns: int | None) -> Iterator[Line]:
    host = [Piece(node.hostname, "bold"), "  "] if node.hostname else []
    code = Piece(f"  ({node.reason_code})", "dim")
    yield line(*host, Piece(node.node_id, "" if host else "bold"), "  ", node_status(node), code)
    if node.status != "ready":
        yield from wrap(line(node.reason), columns)
    if node.clears_when:
        yield from wrap(line(Piece("Changes when: ", "bold"), node.clears_when), columns)


def _gpu_lines(
    node: NodeDetail, numbers: Mapping[str, str], *, columns: int | None, letters: Glyphs
) -> list[Line]:
    """Draw the GPUs with whole UUIDs, with shortened ones where these have no room beside the figures."""
    uuids = [gpu.uuid for gpu in node.gpus]
    whole = _gpu_table(node, numbers, uuids, letters=letters, bars=False)
    if columns is None:
        return render_table(whole, None)
    if max(map(line_width, render_table(whole, None)), default=0) > columns:
        uuids = _shortened(uuids)
    return render_table(_gpu_table(node, numbers, uuids, letters=letters, bars=True), columns)


def _gpu_table(
    node: NodeDetail, numbers: Mapping[str, str], uuids: Sequence[str], *, letters: Glyphs, bars: bool
) -> Table:
    named = len({gpu.name for gpu in node.gpus}) > 1  # else the facts have the name
    shown = [
        index
        for index in range(len(_GPU_COLUMNS))
        if (bars or index not in _BARS) and (named or index != _NAME)
    ]
    parents, listed = {gpu.parent_uuid for gpu in node.gpus}, {gpu.uuid for gpu in node.gpus}
    rows = []
    for gpu, uuid in zip(node.gpus, uuids, strict=True):
        use = line(Piece("split into MIG devices", "dim")) if gpu.uuid in parents else _use(gpu, node)
        cells = (
            line(numbers[gpu.uuid]),
            line(_name(gpu, letters, is_below=gpu.parent_uuid in listed)),
            line(health_piece(gpu.health)),
            use,
            line(_memory(gpu)),
            memory_bar(gpu, letters),
            line(_figure(gpu.utilization_percent, "%")),
            load_bar(gpu, letters),
            line(temperature_piece(gpu, letters)),
            line(_figure(gpu.power_w, " W")),
            line(Piece(uuid, "dim")),
        )
        rows.append(Row([cells[index] for index in shown]))
    return Table([_GPU_COLUMNS[index] for index in shown], rows)


def _name(gpu: GpuView, letters: Glyphs, *, is_below: bool) -> str:
    """A MIG device's name begins with its parent's, which is in the row above."""
    name = short_name(gpu.name)
    mig = name.find("MIG ")
    return f"{letters.branch} {name[max(0, mig) :]}" if is_below else name


def _shortened(uuids: Sequence[str]) -> list[str]:
    """Return the beginnings that distinguish UUIDs: CUDA accepts them, too."""
    length = _SHORT_UUID
    while len({uuid[:length] for uuid in uuids}) < len(set(uuids)):
        length += 1
    return [uuid[:length] for uuid in uuids]


def _use(gpu: GpuView, node: NodeDetail) -> Line:
    """Name the job that has a GPU, and the reasons that keep it from jobs."""
    uses = [Piece(f"job {job}") for job in ([gpu.claimed_by] if gpu.claimed_by else gpu.shared_by)]
    if gpu.idle:
        uses.append(Piece("idle", "yellow"))
    if gpu.held_for:
        uses.append(Piece(f"held for {gpu.held_for}", "yellow"))
    if gpu.reasons or not gpu.usable:
        uses.append(Piece(f"{_limit(gpu)}{', '.join(gpu.reasons)}".removesuffix(": "), "red"))
    if gpu.cordoned is not None:
        uses.append(Piece(gpu.cordoned, "yellow"))
    if gpu_use(gpu) is GpuUse.UNCLAIMED:
        uses.append(Piece("in use without a claim", "yellow"))
    if not uses:
        uses.append(Piece("free", "green") if takes_jobs(node) else Piece("no job", "dim"))
    return line(*separate(uses))


def _limit(gpu: GpuView) -> str:
    """Say which jobs its health keeps from a GPU that works."""
    if gpu.health in ("lost", "unknown"):
        return ""
    if not gpu.usable:
        return "no new jobs: " if NO_NEW_JOBS.intersection(gpu.reasons) else "not usable: "
    return "jobs of one GPU only: " if ONE_GPU_ONLY.intersection(gpu.reasons) else ""


def _gpu_faults(gpus: Sequence[GpuView], numbers: Mapping[str, str], columns: int | None) -> list[Line]:
    """Say once what each reason means, which GPUs have it, and what to do."""
    having: dict[str, list[GpuView]] = {}
    for gpu in gpus:
        for code in gpu.reasons:
            having.setdefault(code, []).append(gpu)
    rows = []
    for code, those in having.items():
        known = REASONS.get(code)
        if known is not None:
            step = how_to(known.action, name=those[0].name, indexes=[gpu.index for gpu in those])
            which = ", ".join(numbers[gpu.uuid] for gpu in those)
            meaning = line(f"{known.detail}; ", Piece("next step: ", "bold"), step)
            rows.append(Row((line(Piece(code, "yellow")), line(which), meaning)))
    return render_table(Table(_FAULT_COLUMNS, rows), columns)


def _memory(gpu: GpuView) -> str:
    if not gpu.memory_mb:
        return "unknown"
    total = f"{gpu.memory_mb / _MIB_IN_GIB:.0f} GiB"
    return total if gpu.memory_used_mb is None else f"{gpu.memory_used_mb / _MIB_IN_GIB:.0f}/{total}"


def _figure(value: float | None, unit: str) -> Piece:
    return Piece("?", "dim") if value is None else Piece(f"{value:.0f}{unit}")


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


def _admission_rows(node: NodeDetail, numbers: Mapping[str, str], *, now: float) -> Iterator[Row]:
    """Yield what failed first; checks that found the same are one row."""
    found: dict[tuple[str, ...], list[NodeCheckView]] = {}
    for check in node.node_checks or ():
        passed = ("ok", check.name) if check.ok else ("fails" if check.required else "", check.detail)
        found.setdefault(passed, []).append(check)
    for (how, _), checks in sorted(found.items(), key=lambda one: one[0][0] == "ok"):
        mark = {"ok": Piece("ok", "green"), "fails": Piece("FAILS", "bold red")}.get(how)
        names = ", ".join(dict.fromkeys(check.name for check in checks))
        oldest = duration_in_words(max(0.0, now - min(check.at for check in checks)))
        yield Row(
            (
                line(names),
                line(mark or Piece("fails, not required", "yellow")),
                line(_scopes(checks, numbers)),
                line(oldest),
                line(checks[0].detail),
            )
        )


def _scopes(checks: Sequence[NodeCheckView], numbers: Mapping[str, str]) -> str:
    """Name the scopes of checks: the node, or GPUs by number."""
    scopes = list(dict.fromkeys(check.scope for check in checks))
    if len(scopes) == 1:
        return f"GPU {numbers[scopes[0]]}" if scopes[0] in numbers else scopes[0]
    if checks[0].ok:
        return f"{len(scopes)} GPUs"
    return f"GPUs {', '.join(sorted((numbers.get(one, one) for one in scopes), key=lambda n: (len(n), n)))}"


def _history(
    events: Sequence[RegistryEvent], numbers: Mapping[str, str], columns: int | None, *, now: float
) -> list[Line]:
    """Draw the latest events of a node, in which its GPUs have their numbers."""
    if not events:
        return []
    lines = [line(Piece("LAST EVENTS" if len(events) > SHOWN_EVENTS else "EVENTS", "bold"))]
    for event in events[-SHOWN_EVENTS:]:
        ago = Piece(f"{duration_in_words(now - event.at):>7} ago  ", "dim")
        words = line(
            *(Piece(_number_gpus(piece.text, numbers), piece.style) for piece in event_pieces(event))
        )
        lines += wrap_after((ago,), words, columns)
    return lines


def _number_gpus(words: str, numbers: Mapping[str, str]) -> str:
    """Name GPUs by number, in one pass: what a node calls its GPUs may stand in what replaces them."""
    uuids = "|".join(re.escape(uuid) for uuid in numbers if len(uuid) >= _LEAST_UUID_LENGTH)
    if not uuids:
        return words
    written = re.compile(rf"(?:GPU \d+(?::\d+)? \((?P<a>{uuids})\)|(?:GPU )?\b(?P<b>{uuids})\b)")
    return written.sub(lambda found: f"GPU {numbers[found['a'] or found['b']]}", words)


def node_facts(node: NodeDetail, *, now: float) -> Iterator[Fact]:
    """Yield names with their values, in the order in which a person asks."""
    for name, words in (
        ("since", _since(node, now)),
        ("link", _link(node)),
        ("jobs", _jobs(node)),
        ("drain", _drain(node, now)),
        ("cordon", _cordon(node)),
        ("gpus", _gpus(node)),
        ("load", _load(node)),
        ("checks", _checks(node)),
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
    return line(f"{clock(node.since, now)} ({duration_in_words(now - node.since)}){before}")


def _link(node: NodeDetail) -> Line:
    connected = Piece("connected", "green") if node.connected else Piece("not connected", "red")
    preposition = "from" if node.connected else "now, last from"
    where = f" {preposition} {node.address}" if node.address else ""
    age = node.last_heartbeat_age_seconds
    last = ", no heartbeat yet" if age is None else f", last heartbeat {duration_in_words(age)} ago"
    every, timeout = node.heartbeat_interval_seconds, node.heartbeat_timeout_seconds
    pace = f" (one every {every:g} s; offline after {timeout:g} s)"
    trip = node.round_trip_ms
    network = "" if trip is None or not node.connected else f", round trip {round(trip, 2):g} ms"
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


def _gpus(node: NodeDetail) -> Line:
    gpus = placeable_gpus(node.gpus)
    if not gpus:
        return line(Piece("none", "red"))
    return line(f"{count_free(node)} of {len(gpus)} free: {gpu_names(gpus, short_name)}", *gpu_marks(gpus))


def _load(node: NodeDetail) -> Line:
    figures = (("CPU", node.cpu_percent), ("memory", node.mem_percent))
    known = [f"{name} {value:.0f}%" for name, value in figures if value is not None]
    age = node.probe_age_seconds
    return line(", ".join([*known, *([] if age is None else [f"GPUs read {duration_in_words(age)} ago"])]))


def _checks(node: NodeDetail) -> Line:
    if not node.checks or not all(check.ok for check in node.checks):
        return ()
    return line(Piece("all pass", "green"), f": {', '.join(check.name for check in node.checks)}")


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
    simulated = (", ", Piece("simulated: these GPUs do not exist", "magenta")) if node.simulated else ()
    return line(", ".join(facts), *simulated)


def _host(node: NodeDetail) -> Line:
    facts = [
        *([node.platform] if node.platform else []),
        f"{node.cpu_cores} cores, {node.memory_gb} GiB memory",
        *([f"driver {node.driver_version}"] if node.driver_version else []),
        *([f"CUDA {node.cuda_version}"] if node.cuda_version else []),
    ]
    return line(", ".join(facts))
