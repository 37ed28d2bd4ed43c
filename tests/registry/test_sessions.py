from gpu_agent.registry.actions import Send
from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.registry.events import ConnectionLost, RegistrationArrived
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.messages import NodeError, NodeRegister
from tests.registry.fleets import (
    JOIN,
    Registry,
    ack,
    closed,
    codes,
    declaration,
    figures,
    fresh_token,
    goodbye,
    hardware,
    notes,
    of,
    proof,
    statuses,
)


def test_r01_a_refused_registration_leaves_no_record_and_an_open_connection() -> None:
    registry = Registry()
    refused = registry.register(hardware=hardware(0))
    assert codes(refused) == ["GPU_REQUIRED"]
    assert closed(refused) == []
    assert registry.fleet.nodes() == []
    assert notes(refused, "node_register_refused")[0].fields["code"] == "GPU_REQUIRED"
    assert ack(registry.register()).node_id == "node-1"


def test_r02_a_node_with_one_gpu_is_acknowledged_as_registering() -> None:
    registry = Registry()
    done = registry.register()
    assert ack(done).node_id == "node-1"
    assert ack(done).status == "registering"
    assert statuses(done) == ["registering"]
    assert registry.node().status == "registering"


def test_the_minimal_frame_is_enough_to_become_ready() -> None:
    registry = Registry()
    frame = (
        '{"type":"node_register","version":"0.9","hardware":{"cpu_cores":8,"memory_gb":32,'
        '"gpus":[{"name":"RTX 4090","memory_gb":24}]},'
        '"installed_models":[{"model_id":"m","version":"1","enabled":true}],"accept_public_jobs":true}'
    )
    message = decode_from_node(frame)
    assert isinstance(message, NodeRegister)
    registry.do(RegistrationArrived(1, message, "node-1", JOIN, fresh_token=fresh_token("node-1")))
    registry.beats(3, gpus=None, probe_age_seconds=None, running_jobs=None)
    assert registry.node().status == "ready"


def test_an_older_node_that_beats_every_15_seconds_becomes_ready_before_its_warm_up_ends() -> None:
    registry = Registry(auth_off=True)
    registry.register(capability_schema_version=None)
    registry.beats(3, every=15.0, gpus=None, probe_age_seconds=None, running_jobs=None)
    assert registry.node().status == "ready"
    registry.do(ConnectionLost(1))
    registry.pass_time(5.0)
    assert ack(registry.register(2, "node-1", capability_schema_version=None)).node_id == "node-1"


def test_a2_the_ack_says_registering_whatever_the_status() -> None:
    registry = Registry()
    record = registry.ready()
    assert ack(registry.register(1, "node-1")).status == "registering"
    assert record.status == "registering"


def test_an_ack_tells_how_to_beat_and_which_session_this_is() -> None:
    registry = Registry(heartbeat_interval_seconds=20.0, warmup_heartbeat_interval_seconds=1.0)
    first, second = ack(registry.register()), ack(registry.register())
    assert first.heartbeat_interval_seconds == 20.0
    assert first.warmup_heartbeat_interval_seconds == 1.0
    assert first.heartbeat_timeout_seconds == 60.0
    assert first.capability_schema_version == "1.1"
    assert (first.session_epoch, second.session_epoch) == (1, 2)


def test_a_registration_whose_credential_is_to_blame_ends_its_connection() -> None:
    registry = Registry()
    refused = registry.arrive(Credential(CredentialKind.JOIN, "unheard of"))
    assert (codes(refused), closed(refused)) == (["UNAUTHORIZED"], [(1, 1008)])
    assert registry.register() == []


def test_registering_again_on_the_same_connection_keeps_the_id_and_starts_over() -> None:
    registry = Registry()
    record = registry.ready()
    registry.register(1, None, hardware=hardware(2))
    assert record.status == "registering"
    assert len(record.gpus) == 2
    assert (record.healthy_beats, record.recent, record.usage) == (0, (), None)
    registry.beats(2)
    assert record.status == "registering"
    registry.beats(1)
    assert record.status == "ready"


def test_a_newer_proven_session_takes_over_and_the_old_one_is_told_and_closed() -> None:
    registry = Registry()
    record = registry.ready()
    taken = registry.do(RegistrationArrived(2, declaration(), "unused", credential=proof("node-1")))
    assert codes(taken, 1) == ["SESSION_SUPERSEDED"]
    assert closed(taken) == [(1, 1008)]
    (noted,) = notes(taken, "session_superseded")
    assert noted.fields["session_epoch"] == 1
    assert ack(taken).session_epoch == 2
    assert record.connection == 2


def test_whoever_is_superseded_is_told_from_where_and_so_are_operators() -> None:
    registry = Registry()
    registry.ready()
    taken = registry.arrive(proof("node-1"), 2, "node-1")
    (told,) = [one.message for one in of(Send, taken) if one.connection == 1]
    assert isinstance(told, NodeError)
    assert told.message.startswith("a newer session, from 10.0.0.2, proved the same identity: ")
    (noted,) = notes(taken, "session_superseded")
    assert (noted.fields["address"], noted.fields["newer_address"]) == ("10.0.0.1", "10.0.0.2")


def test_late_frames_of_a_superseded_session_are_ignored() -> None:
    registry = Registry()
    record = registry.ready()
    registry.do(RegistrationArrived(2, declaration(), "unused", credential=proof("node-1")))
    assert registry.beat(1) == []
    assert registry.do(goodbye(1)) == []
    assert registry.register(1) == []
    assert record.status == "registering"
    assert record.healthy_beats == 0
    registry.do(ConnectionLost(1))
    assert record.connection == 2


def test_a_lost_connection_changes_no_status() -> None:
    registry = Registry()
    record = registry.ready()
    lost = registry.do(ConnectionLost(1))
    assert notes(lost, "node_disconnected")
    assert (record.status, record.connected) == ("ready", False)


def test_a_registration_lists_its_jobs_in_flight() -> None:
    registry = Registry()
    registry.register(running_jobs=("job-1", "job-2"))
    assert registry.node().in_flight_jobs == 2
    registry.beat(running_jobs=("job-1",), gpus=figures())
    assert registry.node().in_flight_jobs == 1


def test_a_registration_leaves_no_figure_of_the_session_before() -> None:
    registry = Registry()
    record = registry.ready()
    message = declaration("node-1")
    registry.do(RegistrationArrived(1, message, "unused", proof("node-1"), round_trip_seconds=0.02))
    assert (record.usage, record.last_beat, record.probe_age_seconds) == (None, None, None)
    assert record.round_trip_seconds == 0.02
    registry.do(RegistrationArrived(1, message, "unused", proof("node-1")))
    assert record.round_trip_seconds is None


def test_a_registration_that_lists_no_jobs_leaves_none_of_the_session_before() -> None:
    registry = Registry()
    record = registry.ready()
    registry.beat(running_jobs=("job-1", "job-2"))
    registry.arrive(proof("node-1"), 1, "node-1")
    assert (record.in_flight_jobs, record.running_jobs, record.reported_job_ids) == (0, None, None)


def test_what_arrived_and_what_was_registered_is_noted() -> None:
    registry = Registry()
    done = registry.register(hardware=hardware(2))
    (arrived,), (registered,) = notes(done, "node_register_received"), notes(done, "node_registered")
    assert arrived.fields == {"schema_version": "1.1", "gpu_count": 2, "address": "10.0.0.1"}
    assert registered.fields["node_id"] == "node-1"
    assert registered.fields["session_epoch"] == 1


def test_a_registration_that_was_under_way_for_long_does_not_supersede_a_session_that_called_later() -> None:
    registry = Registry()
    record = registry.ready()
    registry.come_back(5)
    epoch = record.epoch
    told = registry.come_back(3)
    assert codes(told, 3) == ["SESSION_SUPERSEDED"]
    assert closed(told) == [(3, 1008)]
    assert (record.connection, record.epoch) == (5, epoch)
    assert [note.fields["code"] for note in notes(told, "node_register_refused")] == ["SESSION_SUPERSEDED"]
    assert registry.do(goodbye(3)) == []
    assert record.status != "offline"
