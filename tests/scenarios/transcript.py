"""A transcript in the making: what was said and decided, as lines that a person can read.

Folds heartbeats in a steady row, and what many nodes do in the same instant.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import assert_never

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.exclusions import Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.job import Claim
from gpu_agent.registry.tokens import Token
from gpu_agent.wire.messages import (
    FromNode,
    FromRegistry,
    NodeControl,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)

MANY = 3
"""So many nodes that do the same at once are still shown one by one."""

_COLUMN = 24


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened. `who` holds `{}` where the node stands."""

    at: float
    who: str
    node: str
    text: str
    heartbeat: bool = False
    """True for a heartbeat, which may be folded with those that follow it."""


class Transcript:
    """Collects lines until they are read."""

    def __init__(self) -> None:
        self.recording = True
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Write a line, unless nothing is to be recorded."""
        if self.recording:
            self._lines.append(line)

    def read(self) -> list[str]:
        """Take what was written since the last time, folded."""
        lines, self._lines = self._lines, []
        folded: list[Line] = []
        for heartbeats, run in groupby(lines, key=lambda line: line.heartbeat):
            lines_of_run = list(run)
            folded += _heartbeats_folded(lines_of_run) if heartbeats else lines_of_run
        crowds = (
            one for _, instant in groupby(folded, key=lambda line: line.at) for one in _crowds_folded(instant)
        )
        return [_written(line) for line in crowds]


def _heartbeats_folded(run: Iterable[Line]) -> list[Line]:
    """Fold the heartbeats between two other lines: equal ones in a row of one node become one."""
    rows: list[list[Line]] = []
    newest: dict[str, list[Line]] = {}
    for line in run:
        row = newest.get(line.node)
        if row is None or row[0].text != line.text:
            row = newest[line.node] = []
            rows.append(row)
        row.append(line)
    return [_row_folded(row) for row in rows]


def _row_folded(row: list[Line]) -> Line:
    if len(row) == 1:
        return row[0]
    again = f"heartbeats × {len(row)}, the last at {row[-1].at:.2f} s"  # noqa: RUF001 - a times sign
    return replace(row[0], text=row[0].text.replace("heartbeat", again, 1))


def _crowds_folded(instant: Iterable[Line]) -> Iterator[Line]:
    """Fold what more than a few nodes do in one instant, in the place of the first of them."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in instant:
        groups.setdefault((line.who, line.text), []).append(line)
    for group in groups.values():
        names = sorted({line.node for line in group})
        if len(names) > MANY:
            yield replace(group[0], node=f"{len(names)} nodes", text=f"{group[0].text} [{' '.join(names)}]")
        else:
            yield from group


def _written(line: Line) -> str:
    return f"{line.at:9.2f} s  {line.who.format(line.node):<{_COLUMN}}  {line.text}"


# Messages and answers in the protocol's own words: what matters in them.


EPOCH = 1_700_000_000.0
"""Unix time at which every scenario begins."""

_OLD_READING_SECONDS = 10.0
"""A GPU reading counts as old from this age on: two probes late."""


def said_by_node(message: FromNode) -> str:
    match message:
        case NodeRegister():
            return _registration(message)
        case NodeHeartbeat():
            return _heartbeat(message)
        case NodeUnregister(reason=reason, drain=drain, deadline_seconds=deadline):
            within = "" if deadline is None else f" within {deadline:g} s"
            return f"node_unregister{', drain first' if drain else ''}{within}: {reason}"
        case NodeError():
            return _error(message)
        case _ as unreachable:
            assert_never(unreachable)


def said_by_registry(message: FromRegistry) -> str:
    match message:
        case NodeRegisterAck():
            return _ack(message)
        case NodeStatusMessage():
            return _status(message)
        case NodeError():
            return _error(message)
        case NodeControl(command=command, reason=reason):
            return f"node_control {command}: {reason}"
        case _ as unreachable:
            assert_never(unreachable)


def answered(result: Result, now: float) -> list[str]:
    """An answer to the scheduler or an operator: one line, and one for each example of an exclusion."""
    match result:
        case None:
            return ["done"]
        case Claim():
            places = ", ".join(
                f"{grant.node_id} ({', '.join(grant.gpu_uuids) or 'a slot'})" for grant in result.grants
            )
            left = result.expires_at - now
            return [f"{result.claim_id} of {result.job_id} on {places}, expires in {left:g} s"]
        case Refusal(code=code, message=message):
            return [f"{code}: {message}"]
        case NoAvailableNode(counts=counts, examples=examples):
            counted = ", ".join(f"{reason} {count}" for reason, count in counts.items())
            shown = [one for some in examples.values() for one in some]
            return [
                f"{result.code} for {result.job_id}: {counted or 'no node is known'}",
                *_each(shown),
            ]
        case _ as unreachable:
            assert_never(unreachable)


def explained(explanation: Explanation) -> list[str]:
    eligible = ", ".join(explanation.eligible) or "nobody"
    return [f"could take {explanation.job_id}: {eligible}", *_each(list(explanation.excluded))]


def token_listed(token: Token, now: float) -> str:
    uses = "any number" if token.uses is None else str(token.uses)
    whose = "" if token.node_id is None else f" for {token.node_id}"
    return f"token {token.token_id}{whose}: {token.state(now)}, {token.spent} of {uses} used"


def _each(excluded: list[Excluded]) -> list[str]:
    return [f"  {one.node_id}: {one.reason} (needs {one.need}, has {one.have})" for one in excluded]


def _registration(message: NodeRegister) -> str:
    gpus = len(message.hardware.gpus)
    parts = [
        f"schema {message.capability_schema_version or 'not stated'}",
        f"suggests {message.node_id}" if message.node_id else "suggests no id",
        f"{gpus} GPU" if gpus == 1 else f"{gpus} GPUs",
    ]
    if message.installed_models:
        parts.append(
            "models " + ", ".join(f"{one.model_id} {one.status}" for one in message.installed_models)
        )
    if message.running_jobs:
        parts.append("runs " + ", ".join(message.running_jobs))
    return f"node_register: {', '.join(parts)}"


def _heartbeat(message: NodeHeartbeat) -> str:
    parts = [
        f"GPU {place} {gpu.health} ({', '.join(gpu.reasons) or 'no reason'})"
        for place, gpu in enumerate(message.gpus or ())
        if gpu.health != "ok"
    ]
    age = message.probe_age_seconds
    if age is not None and age >= _OLD_READING_SECONDS:
        parts.append(f"last good reading {age:g} s ago")
    if message.capability_state is not None:
        states = message.capability_state.items()
        parts.append("models " + ", ".join(f"{model} {state}" for model, state in states))
    if message.running_jobs:
        parts.append("runs " + ", ".join(message.running_jobs))
    if message.checks is not None:
        results = (f"{one.name} of {one.scope} {'passed' if one.ok else 'failed'}" for one in message.checks)
        parts.append(f"checks: {', '.join(results) or 'none yet'}")
    return "heartbeat" + "".join(f"; {part}" for part in parts)


def _ack(message: NodeRegisterAck) -> str:
    warmup, steady = message.warmup_heartbeat_interval_seconds, message.heartbeat_interval_seconds
    parts = [
        message.node_id,
        f"session {message.session_epoch}",
        f"heartbeats every {warmup:g} s until ready, then {steady:g} s",
    ]
    if message.node_token is not None:
        parts.insert(1, "a node token")
    return f"node_register_ack {message.status}: {', '.join(parts)}"


def _status(message: NodeStatusMessage) -> str:
    again = " again" if message.periodic else ""
    text = f"node_status {message.status}{again} ({message.reason_code}): {message.reason}"
    details = message.details
    if details is None:
        return text
    if details.in_flight_jobs:
        text += f"; {details.in_flight_jobs} in flight"
    if details.drain_deadline is not None:
        text += f"; drain deadline at {details.drain_deadline - EPOCH:.2f} s"
    return text if details.clears_when is None else f"{text}; next: {details.clears_when}"


def _error(message: NodeError) -> str:
    details = f" {message.details}" if message.details else ""
    return f"{message.type} {message.code}: {message.message}{details}"
