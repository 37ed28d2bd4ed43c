import json

from gpu_agent.registry.actions import TellStatus
from gpu_agent.server.clock import Clock
from gpu_agent.server.status_message import written
from gpu_agent.wire.codec import decode_from_registry, encode
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import Check

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)


def told(**fields: object) -> TellStatus:
    return TellStatus(
        connection=1,
        node_id="node-1",
        status=NodeStatus.DRAINING,
        reason_code=ReasonCode.DRAIN_REQUESTED,
        reason="an operator asked for it",
        since=90.0,
        **fields,  # type: ignore[arg-type]
    )


def test_monotonic_moments_become_unix_time() -> None:
    message = written(told(drain_deadline=160.0), CLOCK)
    assert (message.timestamp, message.since) == (1_000_000.0, 999_990.0)
    assert message.details is not None
    assert message.details.drain_deadline == 1_000_060.0


def test_everything_that_is_told_reaches_the_wire() -> None:
    action = told(
        previous_status=NodeStatus.READY,
        periodic=True,
        heartbeat_interval_seconds=15.0,
        checks=(Check(name="gpus", ok=True, detail="1 of 1"),),
        healthy_beats=2,
        beats_needed=1,
        in_flight_jobs=3,
        clears_when="its 3 jobs end",
    )
    text = encode(written(action, CLOCK))
    assert json.loads(text) == {
        "type": "node_status",
        "node_id": "node-1",
        "status": "draining",
        "reason": "an operator asked for it",
        "timestamp": 1_000_000.0,
        "previous_status": "ready",
        "reason_code": "drain_requested",
        "since": 999_990.0,
        "periodic": True,
        "heartbeat_interval_seconds": 15.0,
        "details": {
            "checks": [{"name": "gpus", "ok": True, "detail": "1 of 1"}],
            "healthy_beats": 2,
            "beats_needed": 1,
            "in_flight_jobs": 3,
            "clears_when": "its 3 jobs end",
        },
    }
    assert decode_from_registry(text) == written(action, CLOCK)


def test_what_is_unknown_is_left_out() -> None:
    document = json.loads(encode(written(told(), CLOCK)))
    assert "previous_status" not in document
    assert "drain_deadline" not in document["details"]
