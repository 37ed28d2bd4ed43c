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


def _beats(ack: NodeRegisterAck = ACK, *, now: float = 0.0) -> Heartbeats:
    beats = Heartbeats(SessionSettings())
    beats.begin(ack, WITH_GPU, now)
    return beats


def _status(name: str, interval: float | None = None) -> NodeStatusMessage:
    return NodeStatusMessage(node_id="node-A", status=name, heartbeat_interval_seconds=interval)


def test_before_the_first_ack_nothing_is_due() -> None:
    assert Heartbeats(SessionSettings()).due_at == float("inf")


def test_the_first_beat_is_due_at_once_and_then_one_each_warmup_interval() -> None:
    beats = _beats(now=100)
    assert beats.due_at == 100
    beats.compose("node-A", WITH_GPU, 100)
    assert beats.due_at == 102


def test_each_beat_says_whether_its_registry_has_named_a_schema() -> None:
    newer = ACK.model_copy(update={"capability_schema_version": "1.1"})
    told = [_beats(ack).compose("node-A", WITH_GPU, 0).knows_schemas for ack in (newer, BARE_ACK)]
    assert told == [True, False]


def test_sequences_count_up_over_all_sessions() -> None:
    beats = _beats()
    assert beats.compose("node-A", WITH_GPU, 0).sequence == 1
    beats.begin(ACK, WITH_GPU, 5)
    assert beats.compose("node-A", WITH_GPU, 5).sequence == 2


def test_a_late_beat_does_not_shift_the_ones_after_it() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 0)
    beats.compose("node-A", WITH_GPU, 2.4)
    assert beats.due_at == 4


def test_after_a_stall_missed_beats_are_skipped() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 0)
    beats.compose("node-A", WITH_GPU, 61)
    assert beats.due_at == 62


def test_leaving_registering_takes_the_steady_rhythm_counted_from_the_last_beat() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 4)
    beats.follow(_status("ready"))
    assert beats.due_at == 19
    beats.follow(_status("registering"))
    assert beats.due_at == 6


def test_a_status_may_carry_a_new_interval() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 0)
    beats.follow(_status("ready", 30))
    assert beats.due_at == 30


def test_a_bare_ack_means_a_beat_every_ten_seconds_whatever_the_status() -> None:
    beats = _beats(BARE_ACK)
    beats.compose("node-A", WITH_GPU, 0)
    assert beats.due_at == 10
    beats.follow(_status("ready"))
    assert beats.due_at == 10


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
    beats = _beats(ack)
    beats.compose("node-A", WITH_GPU, 0)
    assert beats.due_at == first_gap


def test_a_change_brings_the_next_beat_forward_to_the_eager_span() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 0)
    beats.follow(_status("ready"))
    beats.send_early_if_changed(_MORE, 0.2)
    assert beats.due_at == 1
    beats.send_early_if_changed(_MORE, 5)
    assert beats.due_at == 5


def test_no_change_hurries_nothing() -> None:
    beats = _beats()
    beats.compose("node-A", WITH_GPU, 0)
    beats.send_early_if_changed(replace(WITH_GPU), 0.2)
    assert beats.due_at == 2


def test_a_change_is_told_once_and_whole() -> None:
    beats = _beats()
    assert beats.compose("node-A", WITH_GPU, 0).changed == DeclarationChanges()
    told = beats.compose("node-A", _MORE, 2).changed
    assert told == DeclarationChanges(
        installed_models=_MORE.installed_models, capability_state={"whisper": "ready", "nllb": "ready"}
    )
    assert beats.compose("node-A", _MORE, 4).changed == DeclarationChanges()


def test_a_full_beat_replaces_every_part() -> None:
    changed = _beats().compose("node-A", WITH_GPU, 0, full=True).changed
    assert changed.hardware == WITH_GPU.hardware
    assert changed.installed_models == WITH_GPU.installed_models
    assert changed.accept_public_jobs is False
