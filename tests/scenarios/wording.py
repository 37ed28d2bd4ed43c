"""Messages and answers as a person would tell them: what matters, in the protocol's own words."""

from typing import assert_never

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.verdict import Excluded, Explanation, NoAvailableNode
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

EPOCH = 1_700_000_000.0
"""Unix time at which every scenario begins."""

_WORTH_TELLING_SECONDS = 10.0
"""A GPU reading is told to be old from this age on: two probes late."""


def said_by_node(message: FromNode) -> str:
    match message:
        case NodeRegister():
            return _registration(message)
        case NodeHeartbeat():
            return _beat(message)
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
            gpus = ", ".join(result.gpu_uuids)
            left = result.expires_at - now
            return [f"claim {result.job_id} on {result.node_id} ({gpus}), expires in {left:g} s"]
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
    able = ", ".join(explanation.able) or "nobody"
    return [f"could take {explanation.job_id}: {able}", *_each(list(explanation.excluded))]


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


def _beat(message: NodeHeartbeat) -> str:
    parts = [
        f"GPU {place} {gpu.health} ({', '.join(gpu.reasons) or 'no reason'})"
        for place, gpu in enumerate(message.gpus or ())
        if gpu.health != "ok"
    ]
    age = message.probe_age_seconds
    if age is not None and age >= _WORTH_TELLING_SECONDS:
        parts.append(f"last good reading {age:g} s ago")
    if message.capability_state is not None:
        states = message.capability_state.items()
        parts.append("models " + ", ".join(f"{model} {state}" for model, state in states))
    if message.running_jobs:
        parts.append("runs " + ", ".join(message.running_jobs))
    return "beat" + "".join(f"; {part}" for part in parts)


def _ack(message: NodeRegisterAck) -> str:
    warmup, steady = message.warmup_heartbeat_interval_seconds, message.heartbeat_interval_seconds
    parts = [
        message.node_id,
        f"session {message.session_epoch}",
        f"beats every {warmup:g} s until ready, then {steady:g} s",
    ]
    if message.node_token is not None:
        parts.insert(1, "a node token")
    return f"node_register_ack {message.status}: {', '.join(parts)}"


def _status(message: NodeStatusMessage) -> str:
    again = " again" if message.periodic else ""
    told = f"node_status {message.status}{again} ({message.reason_code}): {message.reason}"
    details = message.details
    if details is None:
        return told
    if details.in_flight_jobs:
        told += f"; {details.in_flight_jobs} in flight"
    if details.drain_deadline is not None:
        told += f"; drain deadline at {details.drain_deadline - EPOCH:.2f} s"
    return told if details.clears_when is None else f"{told}; next: {details.clears_when}"


def _error(message: NodeError) -> str:
    details = f" {message.details}" if message.details else ""
    return f"{message.type} {message.code}: {message.message}{details}"
