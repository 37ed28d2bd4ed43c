"""What an agent says of itself in words, fact by fact; what is not known is left out, never guessed.

What the registry said while it was connected is told with its age, and as old while it is away.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.nodes.facts import Fact
from gpu_agent.session.story import UNHEARD, State

Answer = Mapping[str, Any]


def facts(answer: Answer, *, now: float) -> Iterator[Fact]:
    """Yield names and what stands behind them, in the order in which an owner asks; `now` is wall time."""
    for name, words in (
        ("registry", _link(answer, now)),
        ("next", _next(answer["session"], now)),
        ("verdict", _verdict(answer, now)),
        ("drain", _drain(answer["drain"])),
        ("jobs", _jobs(answer)),
        ("public", _public(answer)),
        ("labels", line(", ".join(f"{name}={value}" for name, value in sorted(answer["labels"].items())))),
        ("agent", _agent(answer, now)),
        ("probe", _probe(answer["machine"])),
    ):
        if words:
            yield name, words


def doing(answer: Answer) -> str:
    """Say what the agent does while the registry does not hear it, and why, as a sentence's end."""
    session = answer["session"]
    words = UNHEARD.get(session["state"], session["state"])
    return f"{words}: {session['why'].rstrip('.')}" if session["why"] else words


def _link(answer: Answer, now: float) -> Line:
    session = answer["session"]
    connected = Piece("connected", "green") if answer["connected"] else Piece("not connected", "red")
    since = "" if session["link_since"] is None else f" since {_ago(session['link_since'], now)}"
    return line(f"{session['registry']} ", connected, since, _beats(session))


def _beats(session: Mapping[str, Any]) -> str:
    age = session["last_beat_age_seconds"]
    if age is None:
        return ", no beat yet"
    pace = "" if session["interval_seconds"] is None else f" (one every {session['interval_seconds']:g} s)"
    return f", last beat {in_words(age)} ago{pace}"


def _next(session: Mapping[str, Any], now: float) -> Line:
    left = session["next_attempt_in_seconds"]
    if left is None:
        return ()
    return line(f"tries again in {in_words(left)}, at {clock(session['next_attempt_at'], now)}")


def _verdict(answer: Answer, now: float) -> Line:
    status = answer["status"]
    if status is None:
        return line(Piece("none yet: the registry has not said how it judges this node", "dim"))
    since = "" if status["since"] is None else f" since {_ago(status['since'], now)}"
    told = "" if status["told_age_seconds"] is None else f", told {in_words(status['told_age_seconds'])} ago"
    old = "" if status["current"] else Piece(", before the connection was lost", "yellow")
    return line(f"{status['status']}{since}{told}", old)


def _drain(drain: Mapping[str, Any] | None) -> Line:
    if drain is None:
        return ()
    if drain["over"]:
        return line(Piece(f"over: {drain['reason']}", "magenta"), "; `gpu-agent resume` takes it back")
    left = drain["deadline_in_seconds"]
    latest = "" if left is None else f"; over in {in_words(left)} at the latest"
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
        f"up {in_words(now - agent['started_at'])}",
        Piece("; it was stopped, and waits for its jobs to end", "yellow") if leaving else "",
    )


def _probe(machine: Mapping[str, Any] | None) -> Line:
    if machine is None:
        return line(Piece("none has ended yet", "yellow"))
    age = machine["probe_age_seconds"]
    left_out = len(machine["models_not_declared"])
    more = f"; {left_out} models are not declared, for want of room" if left_out else ""
    return line("no good reading of the GPUs yet" if age is None else f"GPUs read {in_words(age)} ago", more)


def _ago(at: float, now: float) -> str:
    return f"{clock(at, now)} ({in_words(now - at)})"
