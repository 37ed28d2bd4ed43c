"""What changed between two looks at an agent, a line for each change; figures that drift are none."""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.lines import Line, Piece, line, plain
from gpu_agent.cli.local.agent_machine import inventory_of
from gpu_agent.cli.nodes.sheet import STATUS_STYLES, status_piece
from gpu_agent.cli.probe.changes import changes as machine_changes

Answer = Mapping[str, Any]


def changes(before: Answer, after: Answer) -> Iterator[Line]:
    """Yield a line for each; raises `Failure` where what an agent says of its machine cannot be read."""
    if plain(standing(before)) != plain(standing(after)):
        yield standing(after)
    yield from _of_jobs(before, after)
    if before["accept_public_jobs"] is not after["accept_public_jobs"]:
        yield _public(after)
    if before["machine"] is not None and after["machine"] is not None:
        yield from machine_changes(inventory_of(before["machine"]), inventory_of(after["machine"]))


def standing(answer: Answer) -> Line:
    """Say in a line how an agent stands with its registry."""
    who, status = answer["node_id"] or "no id yet", answer["status"]
    drain = answer["drain"] or {}
    if drain.get("over"):
        return line(f"{who} is ", Piece("drained", STATUS_STYLES["draining"]), f": {drain['reason']}")
    if not answer["connected"]:
        why = answer["session"]["why"]
        return line(f"{who} is ", Piece("not connected", "bold red"), f": {why}" if why else "")
    if status is None:
        return line(f"{who} is ", Piece("connected", "cyan"))
    wished = f"; its owner drains it: {drain['reason']}" if drain else ""
    return line(f"{who} is ", status_piece(status["status"]), f": {status['reason']}{wished}")


def _of_jobs(before: Answer, after: Answer) -> Iterator[Line]:
    old, new = (dict.fromkeys(job["job_id"] for job in one["jobs"]["in_flight"]) for one in (before, after))
    yield from (line(f"job {job} has begun") for job in new if job not in old)
    yield from (line(f"job {job} is over") for job in old if job not in new)


def _public(answer: Answer) -> Line:
    if answer["accept_public_jobs"]:
        return line("public jobs are accepted")
    pauses = "; ".join(pause["detail"] for pause in answer["public_jobs"]["pauses"])
    return line(Piece("no public jobs", "yellow"), f": {pauses or 'accept_public_jobs is false'}")
