"""Which id a registration gets, and why it may not have the one it suggests (R-06, §4 Connections).

Decides from what is known of the id; binds nothing.
"""

from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeError

_MINUTE = 60
_HOUR = 3600


def decide(event: RegistrationArrived, roster: Roster, *, auth_off: bool, now: float) -> str | NodeError:
    """Return the id that the registration gets, or the refusal."""
    wanted = event.message.node_id
    current = roster.bound.get(event.connection)
    fixed = current.node_id if current is not None else _proven(event)
    if fixed is not None:
        if wanted in (None, fixed):
            return fixed
        holds = "registered" if current is not None else "its credential belongs to"
        return _conflict(
            wanted,
            f"this connection {holds} {fixed!r} and cannot carry {wanted!r} besides: "
            f"register with node_id null or {fixed!r}, or on another connection without that credential",
        )
    if wanted is None:
        return event.fresh_id if event.fresh_id not in roster.records else _drawn_twice(event)
    holder = roster.records.get(wanted)
    if holder is None or (auth_off and _is_free(holder)):
        return wanted
    return _conflict(wanted, _held(holder, auth_off=auth_off, now=now))


def _proven(event: RegistrationArrived) -> str | None:
    return None if event.credential is None else event.credential.node_id


def _is_free(holder: NodeRecord) -> bool:
    """With auth off an id that is offline or disconnected may be taken over.

    A node that the registry only suspects (§4, mass silence) still has its connection, and keeps its id.
    """
    return holder.status is NodeStatus.OFFLINE or holder.connection is None


def _held(holder: NodeRecord, *, auth_off: bool, now: float) -> str:
    state = "not connected" if holder.connection is None else "connected"
    way = (
        "wait until it is disconnected or offline"
        if auth_off
        else "present its node token, have an operator remove its record"
    )
    return (
        f"node id {holder.node_id!r} is held by a node at {holder.address or 'an unknown address'} "
        f"that registered {_ago(now - holder.registered_at)} ago ({holder.status}, {state}): "
        f"{way}, or register with node_id null to be given a fresh id"
    )


def _conflict(wanted: str | None, message: str) -> NodeError:
    return NodeError(node_id=wanted, code=ErrorCode.NODE_ID_CONFLICT, message=message)


def _drawn_twice(event: RegistrationArrived) -> NodeError:
    return NodeError(
        code=ErrorCode.REGISTRY_BUSY,
        message=f"the id {event.fresh_id!r} drawn for this node is taken: register again for another",
        retry_after_seconds=0,
    )


def _ago(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"
