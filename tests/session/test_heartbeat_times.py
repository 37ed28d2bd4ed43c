from dataclasses import replace

import pytest

from gpu_agent.session.heartbeat import Heartbeats
from gpu_agent.session.types import SessionSettings
from gpu_agent.wire.declaration import DeclarationChanges
from gpu_agent.wire.messages import InstalledModel, NodeRegisterAck, NodeStatusMessage
from tests.session.harness import ACK, BARE_ACK, WITH_GPU

_MORE = replace(
    WITH_GPU,
    installed_models=(*WITH_GPU.installed_models, InstalledModel(model_id="nllb", version="2")),
    capability_state={"whisper": "ready", "nllb": "ready"},
)


def _heartbeats(ack: NodeRegisterAck = ACK, *, now: float = 0.0) -> Heartbeats:
    heartbeats = Heartbeats(SessionSettings())
    heartbeats.begin(ack, WITH_GPU, now)
    return heartbeats


def _status(name: str, interval: float | None = None) -> NodeStatusMessage:
    return NodeStatusMessage(node_id="node-A", status=name, heartbeat_interval_seconds=interval)


def test_before_the_first_ack_nothing_is_due() -> None:
    assert Heartbeats(SessionSettings()).due_at == float("inf")


def test_the_first_heartbeat_is_due_at_once_and_then_one_each_warmup_interval() -> None:
    heartbeats = _heartbeats(now=100)
    assert heartbeats.due_at == 100
    heartbeats.compose("node-A", WITH_GPU, 100)
    assert heartbeats.due_at == 102


def test_each_heartbeat_says_whether_its_registry_has_named_a_schema() -> None:
    newer = ACK.model_copy(update={"capability_schema_version": "1.1"})
    known = [_heartbeats(ack).compose("node-A", WITH_GPU, 0).knows_schemas for ack in (newer, BARE_ACK)]
    assert known == [True, False]


def test_sequences_count_up_over_all_sessions() -> None:
    heartbeats = _heartbeats()
    assert heartbeats.compose("node-A", WITH_GPU, 0).sequence == 1
    heartbeats.begin(ACK, WITH_GPU, 5)
    assert heartbeats.compose("node-A", WITH_GPU, 5).sequence == 2


def test_a_late_heartbeat_does_not_shift_the_ones_after_it() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 0)
    heartbeats.compose("node-A", WITH_GPU, 2.4)
    assert heartbeats.due_at == 4


def test_after_a_stall_missed_heartbeats_are_skipped() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 0)
    heartbeats.compose("node-A", WITH_GPU, 61)
    assert heartbeats.due_at == 62


def test_leaving_registering_takes_the_steady_interval_from_the_last_heartbeat() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 4)
    heartbeats.follow(_status("ready"))
    assert heartbeats.due_at == 19
    heartbeats.follow(_status("registering"))
    assert heartbeats.due_at == 6


def test_a_status_may_carry_a_new_interval() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 0)
    heartbeats.follow(_status("ready", 30))
    assert heartbeats.due_at == 30


def test_a_bare_ack_means_a_heartbeat_every_ten_seconds_whatever_the_status() -> None:
    heartbeats = _heartbeats(BARE_ACK)
    heartbeats.compose("node-A", WITH_GPU, 0)
    assert heartbeats.due_at == 10
    heartbeats.follow(_status("ready"))
    assert heartbeats.due_at == 10


@pytest.mark.parametrize(
    ("steady", "warmup", "first_gap"),
    [(30.0, None, 2.0), (None, 3.0, 3.0), (15.0, 0.0, 0.05), (1.0, 1e15, 3600.0)],
)
def test_an_interval_left_out_takes_the_protocol_s_and_absurd_ones_are_clamped(
    steady: float | None, warmup: float | None, first_gap: float
) -> None:
    ack = NodeRegisterAck(
        node_id="node-A", heartbeat_interval_seconds=steady, warmup_heartbeat_interval_seconds=warmup
    )
    heartbeats = _heartbeats(ack)
    heartbeats.compose("node-A", WITH_GPU, 0)
    assert heartbeats.due_at == first_gap


def test_a_change_sends_the_next_heartbeat_early() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 0)
    heartbeats.follow(_status("ready"))
    heartbeats.send_early_if_changed(_MORE, 0.2)
    assert heartbeats.due_at == 1
    heartbeats.send_early_if_changed(_MORE, 5)
    assert heartbeats.due_at == 5


def test_no_change_hurries_nothing() -> None:
    heartbeats = _heartbeats()
    heartbeats.compose("node-A", WITH_GPU, 0)
    heartbeats.send_early_if_changed(replace(WITH_GPU), 0.2)
    assert heartbeats.due_at == 2


def test_a_change_is_sent_once_and_whole() -> None:
    heartbeats = _heartbeats()
    assert heartbeats.compose("node-A", WITH_GPU, 0).changed == DeclarationChanges()
    changed = heartbeats.compose("node-A", _MORE, 2).changed
    assert changed == DeclarationChanges(
        installed_models=_MORE.installed_models, capability_state={"whisper": "ready", "nllb": "ready"}
    )
    assert heartbeats.compose("node-A", _MORE, 4).changed == DeclarationChanges()


def test_a_full_heartbeat_replaces_every_part() -> None:
    changed = _heartbeats().compose("node-A", WITH_GPU, 0, full=True).changed
    assert changed.hardware == WITH_GPU.hardware
    assert changed.installed_models == WITH_GPU.installed_models
    assert changed.accept_public_jobs is False
