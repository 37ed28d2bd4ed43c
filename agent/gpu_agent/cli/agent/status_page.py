"""The status of this machine's agent as a page: its status at the registry, then what the machine has.

What is not known is left out, never guessed. What the registry sent while it was connected is shown with its
age, and as old while the registry is away.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping

from gpu_agent.cli.agent.drain_progress import node_name
from gpu_agent.cli.agent.probe_page import trouble_lines
from gpu_agent.cli.output.blocks import Block
from gpu_agent.cli.output.inventory import (
    gpu_block,
    gpus_by_number,
    gpus_in_words,
    model_table,
    models_in_words,
    status_piece,
)
from gpu_agent.cli.output.table import Column, Fact, Row, Table, render_facts, render_table
from gpu_agent.cli.output.text import Glyphs, Line, Piece, join_blocks, line, printable, wrap
from gpu_agent.cli.output.units import clock, duration_in_words
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS
from gpu_agent.session.types import STATE_PHRASES, State
from gpu_agent.wire.codes import NODE_SCOPE, STATUS_COLOURS, NodeStatus
from gpu_agent.wire.control import AdmissionCheckInfo, DrainInfo, JobInfo, SessionInfo, StatusDocument
from gpu_agent.wire.inventory import GpuReport, Health, Inventory, Outcome
from gpu_agent.wire.probe_document import MachineDocument

if sys.platform != "win32":
    import pwd

_CHECK_COLUMNS = (Column(head="CHECK"), Column(head="DETAIL", wraps=True))
_ADMISSION_COLUMNS = (Column(head="ADMISSION CHECK"), Column(head=""), Column(head="DETAIL", wraps=True))
_JOB_COLUMNS = (
    Column(head="JOB", wraps=True),
    Column(head="SINCE", priority=2),
    Column(head="FOR", right=True),
    Column(head="USER", priority=1),
    Column(head="ENDS WITH"),
)
_ADMISSION_ORDER = (False, True, None)
"""Failures come first, then what passed, then what did not run."""
_PHRASES: dict[str, str] = {state.value: words for state, words in STATE_PHRASES.items()}


def status_page(answer: StatusDocument, columns: int | None, letters: Glyphs, *, now: float) -> list[Line]:
    """Draw it for a terminal of so many columns, None for no terminal; `now` is wall time."""
    return join_blocks(block.lines for block in status_blocks(answer, columns, letters, now=now))


def status_blocks(
    answer: StatusDocument, columns: int | None, letters: Glyphs, *, now: float
) -> Iterator[Block]:
    """Yield the parts of the page."""
    yield Block("status", list(_headline(answer, columns)))
    yield Block("facts", render_facts(status_facts(answer, now=now), columns), leaves=4)
    yield Block("checks", render_table(Table(_CHECK_COLUMNS, list(_failing_checks(answer))), columns))
    yield Block("admission checks", admission_table(answer.checks, answer.machine, columns), leaves=1)
    yield Block("jobs", job_table(answer.jobs.in_flight, columns, now=now), leaves=5)
    yield from _machine_blocks(answer.machine, columns, letters, now=now)


def machine_inventory(machine: MachineDocument) -> Inventory:
    """Return the machine in the form that the probe's page draws."""
    return Inventory(
        host=machine.host,
        gpu=GpuReport(
            outcome=machine.outcome,
            detail=machine.detail,
            gpus=machine.gpus,
            driver_version=machine.driver_version,
            cuda_version=machine.cuda_version,
        ),
        models=machine.models,
        models_complete=machine.models_complete,
        models_unsearched=machine.models_unsearched,
        features_supported=machine.features_supported,
        advanced_features=machine.advanced_features,
        simulated=machine.simulated,
        took_ms=machine.took_ms,
    )


def _headline(answer: StatusDocument, columns: int | None) -> Iterator[Line]:
    status, name = answer.status, Piece(answer.node_id or "no id yet", "bold")
    if answer.drain is not None and answer.drain.over:
        yield line(name, "  ", Piece("drained", STATUS_COLOURS["draining"]))
        words = f"Drained by its owner: {answer.drain.reason}. `gpu-agent resume` puts it back into service."
        yield from wrap(line(words), columns)
    elif not answer.connected:
        yield line(name, "  ", Piece("not connected", "bold red"))
        again = " `gpu-agent resume` has it try again." if answer.session.state == State.YIELDED else ""
        words = f"The agent runs, and is not registered: {activity_in_words(answer.session)}.{again}"
        yield from wrap(line(words), columns)
    elif status is None:
        yield line(name, "  ", Piece("connected", "cyan"))
        yield line("The registry has not sent this node's status yet.")
    else:
        code = Piece(f"  ({status.reason_code})", "dim") if status.reason_code else ""
        yield line(name, "  ", _status_piece(status.status, answer.machine), code)
        yield from wrap(line(status.reason or ""), columns)
        if status.clears_when:
            yield from wrap(line(Piece("Changes when: ", "bold"), status.clears_when), columns)


def _status_piece(status: str, machine: MachineDocument | None) -> Piece:
    """Draw the status; a ready node with a faulty GPU is not as green as one without."""
    faulty = machine is not None and any(gpu.health is not Health.OK for gpu in machine.gpus)
    return Piece(status, "yellow") if status == NodeStatus.READY and faulty else status_piece(status)


def activity_in_words(session: SessionInfo) -> str:
    """Say what an agent does that is not registered, and why, as a sentence's end."""
    words = _PHRASES.get(session.state, session.state)
    return f"{words}: {session.why.rstrip('.')}" if session.why else words


def _failing_checks(answer: StatusDocument) -> Iterator[Row]:
    if answer.status is not None and answer.status.current:
        for check in answer.status.checks:
            if not check.ok:
                yield Row((line(Piece(check.name, "red")), line(check.detail)))


def admission_table(
    checks: Iterable[AdmissionCheckInfo], machine: MachineDocument | None, columns: int | None
) -> list[Line]:
    """Draw the admission checks, failures first; one row for GPUs with the same result. None: no lines."""
    numbers = {gpu.uuid: gpu.index for gpu in ([] if machine is None else machine.gpus)}
    rows: dict[tuple[object, ...], list[AdmissionCheckInfo]] = {}
    for check in checks:
        passed = check.ok is True and not check.not_repeated
        result = () if passed else (check.ok, check.detail, check.not_repeated)
        rows.setdefault((check.name, *result), []).append(check)
    in_order = sorted(rows.values(), key=lambda same: _ADMISSION_ORDER.index(same[0].ok))
    return render_table(
        Table(_ADMISSION_COLUMNS, [_admission_row(one, numbers) for one in in_order]), columns
    )


def _admission_row(checks: list[AdmissionCheckInfo], numbers: Mapping[str, int | None]) -> Row:
    check = checks[0]
    mark = {True: Piece("ok", "green"), False: Piece("FAILS", "bold red"), None: Piece("not run", "yellow")}
    known = sorted(number for one in checks if (number := numbers.get(one.scope)) is not None)
    if check.ok and len(checks) > 1:
        where = f"{len(checks)} GPUs"
    else:
        where = gpus_by_number(known) if len(known) == len(checks) else ", ".join(one.scope for one in checks)
    detail = check.detail if check.scope == NODE_SCOPE else f"{where}: {check.detail}"
    waits = Piece(f"; not run again: {check.not_repeated}", "yellow") if check.not_repeated else ""
    return Row((line(check.name), line(mark[check.ok]), line(detail, waits)))


def _machine_blocks(
    machine: MachineDocument | None, columns: int | None, letters: Glyphs, *, now: float
) -> Iterator[Block]:
    if machine is None:
        return
    inventory = machine_inventory(machine)
    if inventory.simulated:
        yield Block("machine", [line(Piece("SIMULATED: these GPUs do not exist", "bold magenta"))], leaves=6)
    if not inventory.gpu.gpus:
        none = line(Piece(inventory.gpu.detail or "No GPU was found.", "bold red"))
        yield Block("no GPU", wrap(none, columns))
    yield gpu_block(inventory.gpu.gpus, columns, letters)
    yield Block("models", model_table(inventory.models, columns), leaves=2)
    yield Block("what is wrong", trouble_lines(inventory, columns, now=now), leaves=3)


def status_facts(answer: StatusDocument, *, now: float) -> Iterator[Fact]:
    """Yield names with their values, in the order in which an owner asks; `now` is wall time."""
    labels = ", ".join(f"{name}={value}" for name, value in sorted(answer.labels.items()))
    for name, words in (
        ("registry", _link(answer, now)),
        ("others", line(", ".join(answer.session.other_addresses))),
        ("next", _next(answer.session, now)),
        ("token", _token(answer.session)),
        ("status", _status(answer, now)),
        ("drain", _drain(answer.drain)),
        ("jobs", _jobs(answer)),
        ("public", _public(answer)),
        ("labels", line(labels)),
        ("agent", _agent(answer, now)),
        ("state", _attention(answer.agent.state_problem)),
        ("settings", _attention(answer.agent.settings_problem)),
        ("probe", _probe(answer.machine)),
    ):
        if words:
            yield name, words


def _link(answer: StatusDocument, now: float) -> Line:
    session = answer.session
    connected = Piece("connected", "green") if answer.connected else Piece("not connected", "red")
    since = "" if session.link_since is None else f" since {_ago(session.link_since, now)}"
    return line(f"{session.registry} ", connected, since, _heartbeats(session))


def _heartbeats(session: SessionInfo) -> str:
    age = session.last_heartbeat_age_seconds
    if age is None:
        return ", no heartbeat yet"
    pace = "" if session.interval_seconds is None else f" (one every {session.interval_seconds:g} s)"
    return f", last heartbeat {duration_in_words(age)} ago{pace}"


def _next(session: SessionInfo, now: float) -> Line:
    left, at = session.next_attempt_in_seconds, session.next_attempt_at
    if left is None or at is None:
        return ()
    return line(f"tries again in {duration_in_words(left)}, at {clock(at, now)}")


def _token(session: SessionInfo) -> Line:
    return line(Piece(session.token_problem, "yellow")) if session.token_problem else ()


def _status(answer: StatusDocument, now: float) -> Line:
    status = answer.status
    if status is None:
        return line(Piece("none yet: the registry has not sent this node's status", "dim"))
    since = "" if status.since is None else f" since {_ago(status.since, now)}"
    age = status.received_age_seconds
    received = "" if age is None else f", received {duration_in_words(age)} ago"
    old = "" if status.current else Piece(", before the connection was lost", "yellow")
    return line(f"{status.status}{since}{received}", old)


def _drain(drain: DrainInfo | None) -> Line:
    if drain is None:
        return ()
    if drain.over:
        words = "; `gpu-agent resume` puts the machine back into service"
        return line(Piece(f"over: {drain.reason}", "magenta"), words)
    left = drain.deadline_in_seconds
    latest = "" if left is None else f"; over in {duration_in_words(left)} at the latest"
    return line(Piece(f"by its owner: {drain.reason}", "magenta"), latest)


def _jobs(answer: StatusDocument) -> Line:
    slots = "" if answer.max_concurrent_jobs is None else f", of {answer.max_concurrent_jobs} slots"
    if answer.jobs.announced:
        return line(f"{len(answer.jobs.in_flight)} in flight{slots}")
    status = answer.status
    counted = None if status is None or not status.current else status.in_flight_jobs
    registry = "" if counted is None else f"; the registry counts {counted}"
    return line(f"none announced{slots}: processes on the GPUs are counted instead{registry}")


def _public(answer: StatusDocument) -> Line:
    if not answer.public_jobs.wanted:
        return line("not accepted: accept_public_jobs is false")
    if answer.accept_public_jobs:
        return line(Piece("accepted", "green"))
    pauses = "; ".join(pause.detail for pause in answer.public_jobs.pauses)
    return line(Piece("paused", "yellow"), ": ", pauses)


def _agent(answer: StatusDocument, now: float) -> Line:
    agent, leaving = answer.agent, answer.session.state == State.LEAVING
    return line(
        f"version {agent.version}, process {agent.pid} on {agent.hostname}, "
        f"up {duration_in_words(now - agent.started_at)}",
        Piece("; it was stopped, and waits for its jobs to end", "yellow") if leaving else "",
    )


def _attention(problem: str | None) -> Line:
    return () if problem is None else line(Piece(problem, "bold red"))


def _probe(machine: MachineDocument | None) -> Line:
    if machine is None:
        return line(Piece("none has ended yet", "yellow"))
    age, left_out = machine.probe_age_seconds, len(machine.models_not_declared)
    more = f"; {left_out} models are not declared, for want of room" if left_out else ""
    read = "no good reading of the GPUs yet" if age is None else f"GPUs read {duration_in_words(age)} ago"
    return line(read, more)


def _ago(at: float, now: float) -> str:
    return f"{clock(at, now)} ({duration_in_words(now - at)})"


LATE_SECONDS = 2 * DEADLINE_SECONDS
"""A reading that was requested just now is this old only where the driver let its deadline pass."""


def refreshed_in_words(now: StatusDocument) -> str:
    """Say what a probe has found that was requested, and when the registry receives it."""
    when = (
        "the registry receives it with the next heartbeat"
        if now.connected
        else "the registry is not connected, and receives it when it is"
    )
    return f"{node_name(now)} has been probed: {_findings(now.machine)}; {when}."


def _findings(machine: MachineDocument | None) -> str:
    if machine is None:
        return "nothing was found"
    if machine.outcome is not Outcome.OK:
        return printable(machine.detail or machine.outcome).rstrip(".")
    gpus, models = gpus_in_words(machine.gpus), models_in_words(machine.models)
    age = machine.probe_age_seconds or 0.0  # none where they are not polled: such a probe reads them
    read = f", as read {duration_in_words(age)} ago: the driver does not answer" if age > LATE_SECONDS else ""
    return printable(f"GPUs {gpus}{read}; models ready {models}")


def job_table(jobs: Iterable[JobInfo], columns: int | None, *, now: float) -> list[Line]:
    """Draw them, the longest first; `now` is wall time. Without jobs: no lines."""
    return render_table(Table(_JOB_COLUMNS, [_job_row(job, now) for job in jobs]), columns)


def holder_in_words(job: JobInfo) -> str:
    """Say what ends a job that is not finished before."""
    if job.pid is None:
        return "a connection from elsewhere"
    process = f"process {job.pid}"
    return process if job.held_by == "process" else f"the connection of {process}"


def _job_row(job: JobInfo, now: float) -> Row:
    return Row(
        (
            line(job.job_id),
            line(clock(job.since, now)),
            line(duration_in_words(now - job.since)),
            line(_user_name(job.uid)),
            line(holder_in_words(job)),
        )
    )


def _user_name(uid: int) -> str:
    """The user's name where this machine knows one."""
    if sys.platform == "win32":
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
