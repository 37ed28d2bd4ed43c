"""The status of this machine's agent as a page: how the registry sees it, then what it has."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpu_agent.cli.agent.jobs import job_table
from gpu_agent.cli.agent.probe_page import trouble_lines
from gpu_agent.cli.command import Failure
from gpu_agent.cli.output.inventory import gpu_table, model_table
from gpu_agent.cli.output.nodes import STATUS_STYLES, status_piece
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Glyphs, Line, Piece, line, wrap
from gpu_agent.cli.output.units import duration_in_words
from gpu_agent.cli.registry.events import clock
from gpu_agent.cli.registry.node_page import Fact
from gpu_agent.session.types import STATE_PHRASES, State
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Model, Outcome

_ENDLESS = 1_000_000
_FACT_COLUMNS = (Column(head=""), Column(head="", wraps=True))
_CHECK_COLUMNS = (Column(head="CHECK"), Column(head="DETAIL", wraps=True))
_YIELDED = "yielded"
Answer = Mapping[str, Any]


def status_page(answer: Answer, columns: int | None, letters: Glyphs, *, now: float) -> list[Line]:
    """Draw an answer to `status`; `columns` is None for a pipe, `now` is wall time. Raises `Failure`."""
    told = [Row((line(Piece(name, "dim")), words)) for name, words in status_facts(answer, now=now)]
    blocks = [
        list(_headline(answer, _ENDLESS if columns is None else columns)),
        render_table(Table(_FACT_COLUMNS, told), columns),
        render_table(Table(_CHECK_COLUMNS, list(_failing_checks(answer))), columns),
        job_table(answer["jobs"]["in_flight"], columns, now=now),
        *_machine_blocks(answer, columns, letters, now=now),
    ]
    page: list[Line] = []
    for block in blocks:
        page += [*([BLANK] if page and block else []), *block]
    return page


def _headline(answer: Answer, columns: int) -> Iterator[Line]:
    status, who = answer["status"], Piece(answer["node_id"] or "no id yet", "bold")
    if (answer["drain"] or {}).get("over"):
        yield line(who, "  ", Piece("drained", STATUS_STYLES["draining"]))
        words = f"Emptied, as its owner asked: {answer['drain']['reason']}. `gpu-agent resume` takes it back."
        yield from wrap(line(words), columns)
    elif not answer["connected"]:
        yield line(who, "  ", Piece("not connected", "bold red"))
        again = " `gpu-agent resume` has it try again." if answer["session"]["state"] == _YIELDED else ""
        words = f"The agent runs, and the registry does not hear it: {activity_in_words(answer)}.{again}"
        yield from wrap(line(words), columns)
    elif status is None:
        yield line(who, "  ", Piece("connected", "cyan"))
        yield line("The registry has not said yet how it judges this node.")
    else:
        code = Piece(f"  ({status['reason_code']})", "dim") if status["reason_code"] else ""
        yield line(who, "  ", status_piece(status["status"]), code)
        yield from wrap(line(status["reason"] or ""), columns)
        if status["clears_when"]:
            yield from wrap(line(Piece("Changes when: ", "bold"), status["clears_when"]), columns)


def _failing_checks(answer: Answer) -> Iterator[Row]:
    """The checks that the registry says this node fails; those it passes need no words."""
    status = answer["status"]
    if status is not None and status["current"]:
        for check in status["checks"]:
            if not check["ok"]:
                yield Row((line(Piece(check["name"], "red")), line(check["detail"])))


def _machine_blocks(
    answer: Answer, columns: int | None, letters: Glyphs, *, now: float
) -> Iterator[list[Line]]:
    machine = answer["machine"]
    if machine is None:
        return
    inventory = machine_inventory(machine)
    if inventory.simulated:
        yield [line(Piece("SIMULATED: these GPUs do not exist", "bold magenta"))]
    if not inventory.gpu.gpus:
        words = line(Piece(inventory.gpu.detail or "No GPU was found.", "bold red"))
        yield wrap(words, _ENDLESS if columns is None else columns)
    yield gpu_table(inventory.gpu.gpus, columns, letters)
    yield model_table(inventory.models, columns)
    yield trouble_lines(inventory, columns, now=now)


def status_facts(answer: Answer, *, now: float) -> Iterator[Fact]:
    """Yield names and what stands behind them, in the order in which an owner asks; `now` is wall time."""
    for name, words in (
        ("registry", _link(answer, now)),
        ("next", _next(answer["session"], now)),
        ("verdict", _status(answer, now)),
        ("drain", _drain(answer["drain"])),
        ("jobs", _jobs(answer)),
        ("public", _public(answer)),
        ("labels", line(", ".join(f"{name}={value}" for name, value in sorted(answer["labels"].items())))),
        ("agent", _agent(answer, now)),
        ("probe", _probe(answer["machine"])),
    ):
        if words:
            yield name, words


def activity_in_words(answer: Answer) -> str:
    """Say what the agent does while the registry does not hear it, and why, as a sentence's end."""
    session = answer["session"]
    words = STATE_PHRASES.get(session["state"], session["state"])
    return f"{words}: {session['why'].rstrip('.')}" if session["why"] else words


def _link(answer: Answer, now: float) -> Line:
    session = answer["session"]
    connected = Piece("connected", "green") if answer["connected"] else Piece("not connected", "red")
    since = "" if session["link_since"] is None else f" since {_ago(session['link_since'], now)}"
    return line(f"{session['registry']} ", connected, since, _beats(session))


def _beats(session: Mapping[str, Any]) -> str:
    age = session["last_heartbeat_age_seconds"]
    if age is None:
        return ", no beat yet"
    pace = "" if session["interval_seconds"] is None else f" (one every {session['interval_seconds']:g} s)"
    return f", last beat {duration_in_words(age)} ago{pace}"


def _next(session: Mapping[str, Any], now: float) -> Line:
    left = session["next_attempt_in_seconds"]
    if left is None:
        return ()
    return line(f"tries again in {duration_in_words(left)}, at {clock(session['next_attempt_at'], now)}")


def _status(answer: Answer, now: float) -> Line:
    status = answer["status"]
    if status is None:
        return line(Piece("none yet: the registry has not said how it judges this node", "dim"))
    since = "" if status["since"] is None else f" since {_ago(status['since'], now)}"
    told = (
        ""
        if status["received_age_seconds"] is None
        else f", told {duration_in_words(status['received_age_seconds'])} ago"
    )
    old = "" if status["current"] else Piece(", before the connection was lost", "yellow")
    return line(f"{status['status']}{since}{told}", old)


def _drain(drain: Mapping[str, Any] | None) -> Line:
    if drain is None:
        return ()
    if drain["over"]:
        return line(Piece(f"over: {drain['reason']}", "magenta"), "; `gpu-agent resume` takes it back")
    left = drain["deadline_in_seconds"]
    latest = "" if left is None else f"; over in {duration_in_words(left)} at the latest"
    return line(Piece(f"by its owner: {drain['reason']}", "magenta"), latest)


def _jobs(answer: Answer) -> Line:
    jobs, most = answer["jobs"], answer["max_concurrent_jobs"]
    places = "" if most is None else f", of {most} places"
    if jobs["announced"]:
        return line(f"{len(jobs['in_flight'])} in flight{places}")
    status = answer["status"]
    counted = None if status is None or not status["current"] else status["in_flight_jobs"]
    told = "" if counted is None else f"; the registry counts {counted}"
    return line(f"none announced{places}: processes on the GPUs are counted instead{told}")


def _public(answer: Answer) -> Line:
    public = answer["public_jobs"]
    if not public["wanted"]:
        return line("not accepted: accept_public_jobs is false")
    if answer["accept_public_jobs"]:
        return line(Piece("accepted", "green"))
    return line(Piece("paused", "yellow"), ": ", "; ".join(pause["detail"] for pause in public["pauses"]))


def _agent(answer: Answer, now: float) -> Line:
    agent, leaving = answer["agent"], answer["session"]["state"] == State.LEAVING
    return line(
        f"version {agent['version']}, process {agent['pid']} on {agent['hostname']}, "
        f"up {duration_in_words(now - agent['started_at'])}",
        Piece("; it was stopped, and waits for its jobs to end", "yellow") if leaving else "",
    )


def _probe(machine: Mapping[str, Any] | None) -> Line:
    if machine is None:
        return line(Piece("none has ended yet", "yellow"))
    age = machine["probe_age_seconds"]
    left_out = len(machine["models_not_declared"])
    more = f"; {left_out} models are not declared, for want of room" if left_out else ""
    return line(
        "no good reading of the GPUs yet" if age is None else f"GPUs read {duration_in_words(age)} ago", more
    )


def _ago(at: float, now: float) -> str:
    return f"{clock(at, now)} ({duration_in_words(now - at)})"


_HOST = TypeAdapter(Host)
_OUTCOME = TypeAdapter(Outcome)
_GPUS = TypeAdapter(tuple[Gpu, ...])
_MODELS = TypeAdapter(tuple[Model, ...])


def machine_inventory(machine: Mapping[str, Any]) -> Inventory:
    """Read it; raises `Failure`."""
    try:
        return Inventory(
            host=_HOST.validate_python(machine["host"]),
            gpu=GpuReport(
                outcome=_OUTCOME.validate_python(machine["outcome"]),
                detail=machine["detail"],
                gpus=_GPUS.validate_python(machine["gpus"]),
                driver_version=machine["driver_version"],
                cuda_version=machine["cuda_version"],
            ),
            models=_MODELS.validate_python(machine["models"]),
            models_complete=machine["models_complete"],
            models_unsearched=machine["models_unsearched"],
            features_supported=machine["features_supported"],
            advanced_features=tuple(machine["advanced_features"]),
            simulated=machine["simulated"],
            took_ms=machine["took_ms"],
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise Failure(
            f"the agent's report of its machine cannot be read ({_first_error(error)}): it has another version; "
            "restart it after an upgrade, or read what it says with --json"
        ) from None


def _first_error(error: ValidationError | KeyError | TypeError) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return ": ".join([*([".".join(map(str, fault["loc"]))] if fault["loc"] else []), fault["msg"]])
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
