"""The life of one node: which status may follow which, and for what reason (§4).

A node that registers has only declared what it could do; it is `registering` until it has
proven, beat by beat, that it can. Then it is `ready`, the only status that takes jobs. A
node that fails is `degraded` rather than gone: it still beats, and comes back by beating
well. A node that is to leave is `draining`: it finishes what it has and takes nothing new.
Whatever has fallen silent, left or been emptied is `offline`.

Two ways lead back to the start. A registration does, from everywhere but an operator's
drain: a machine that restarted must prove itself anew. And `resume` does, from `draining`
and from `offline` with an open session: there the node has not restarted, so it need not
register, but nobody vouched for it while it was away. A drain that the node itself asked
for ends when it registers again (§3.6); that is the same arrow, taken by the node.

There is no arrow from `draining` to `ready`, none from `offline` to anything but
`registering`, and none from `offline` to itself: a verdict on a node that is offline
already is no news. A node that registers while it drains for an operator keeps its status.

This module holds the table and the one function that follows it. When an arrow is due is
decided elsewhere; what is told, saved and closed because of it, too.
"""

from collections.abc import Mapping

from gpu_agent.registry.node import NodeRecord, Transition
from gpu_agent.wire.codes import NodeStatus, ReasonCode

HISTORY_LENGTH = 12
"""How many transitions a node remembers."""

_LEFT = frozenset({ReasonCode.HEARTBEAT_TIMEOUT, ReasonCode.UNREGISTERED, ReasonCode.REMOVED})
_REGISTERED = frozenset({ReasonCode.REGISTERED})

TRANSITIONS: Mapping[tuple[NodeStatus | None, NodeStatus], frozenset[ReasonCode]] = {
    (None, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.REGISTERING, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.READY, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.DEGRADED, NodeStatus.REGISTERING): _REGISTERED,
    (NodeStatus.DRAINING, NodeStatus.REGISTERING): frozenset({ReasonCode.RESUMED}),
    (NodeStatus.OFFLINE, NodeStatus.REGISTERING): _REGISTERED | {ReasonCode.RESUMED},
    (NodeStatus.REGISTERING, NodeStatus.READY): frozenset({ReasonCode.HEALTH_CHECKS_PASSED}),
    (NodeStatus.REGISTERING, NodeStatus.DEGRADED): frozenset(
        {ReasonCode.MODEL_MISSING, ReasonCode.GPU_UNAVAILABLE, ReasonCode.WARMUP_TIMEOUT}
    ),
    (NodeStatus.READY, NodeStatus.DEGRADED): frozenset(
        {
            ReasonCode.GPU_UNAVAILABLE,
            ReasonCode.MODEL_MISSING,
            ReasonCode.HEALTH_CHECKS_FAILED,
            ReasonCode.FLAPPING,
        }
    ),
    (NodeStatus.DEGRADED, NodeStatus.READY): frozenset({ReasonCode.RECOVERED}),
    (NodeStatus.READY, NodeStatus.DRAINING): frozenset({ReasonCode.DRAIN_REQUESTED}),
    (NodeStatus.DEGRADED, NodeStatus.DRAINING): frozenset({ReasonCode.DRAIN_REQUESTED}),
    (NodeStatus.REGISTERING, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.READY, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.DEGRADED, NodeStatus.OFFLINE): _LEFT,
    (NodeStatus.DRAINING, NodeStatus.OFFLINE): _LEFT | {ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE},
}
"""From, to, and the reasons that may be given; no other arrow exists."""


class IllegalTransitionError(Exception):
    """An arrow that the table does not hold was asked for: our own mistake; nothing was changed."""

    def __init__(self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode) -> None:
        self.node_id = record.node_id
        super().__init__(
            f"node {record.node_id}: no arrow {_name(status_of(record))} → {target} for {reason_code}; "
            f"its story: {describe_history(record.story)}"
        )


def status_of(record: NodeRecord) -> NodeStatus | None:
    """Return a node's status; None for a record whose story has not begun."""
    return record.status if record.story else None


def transition(
    record: NodeRecord, target: NodeStatus, *, reason_code: ReasonCode, reason: str, now: float
) -> Transition:
    """Follow one arrow; raises `IllegalTransitionError`, changing nothing, where none exists."""
    source = status_of(record)
    if reason_code not in TRANSITIONS.get((source, target), frozenset()):
        raise IllegalTransitionError(record, target, reason_code)
    transition = Transition(at=now, source=source, target=target, reason_code=reason_code)
    record.story = (*record.story, transition)[-HISTORY_LENGTH:]
    record.previous_status, record.status = source, target
    record.reason_code, record.reason, record.since = reason_code, reason, now
    return transition


def describe_history(story: tuple[Transition, ...]) -> str:
    """Write a story as one line, oldest first; times are seconds before its end."""
    if not story:
        return "not begun"
    end = story[-1].at
    first = _name(story[0].source)
    steps = (f"→ {one.target} ({one.reason_code}, {one.at - end:.3f} s)" for one in story)
    return f"{first} {' '.join(steps)}"


def _name(status: NodeStatus | None) -> str:
    return "none" if status is None else status.value
