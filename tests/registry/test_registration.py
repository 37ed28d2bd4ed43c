"""Registration, supersession, unregistration and lost connections."""

import pytest

from gpu_agent.registry.actions import CloseConnection, Send, SendStatus
from gpu_agent.registry.declaration import refusal_of
from gpu_agent.registry.events import ConnectionLost, RegistrationReceived
from gpu_agent.registry.node import LONGEST_DRAIN_SECONDS
from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeError, NodeRegister
from tests.registry.harness import (
    JOIN,
    Registry,
    ack,
    closed,
    codes,
    declaration,
    figures,
    fresh_token,
    hardware,
    logged,
    of,
    proof,
    statuses,
    unregistration,
)


def test_r01_a_refused_registration_leaves_no_record_and_an_open_connection() -> None:
    registry = Registry()
    refused = registry.register(hardware=hardware(0))
    assert codes(refused) == ["GPU_REQUIRED"]
    assert closed(refused) == []
    assert registry.fleet.nodes() == []
    assert logged(refused, "node_register_refused")[0].fields["code"] == "GPU_REQUIRED"
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
    registry.do(RegistrationReceived(1, message, "node-1", JOIN, fresh_token=fresh_token("node-1")))
    registry.heartbeats(3, gpus=None, probe_age_seconds=None, running_jobs=None)
    assert registry.node().status == "ready"


def test_an_older_node_that_sends_one_heartbeat_every_15_seconds_becomes_ready_before_its_warm_up_ends() -> (
    None
):
    registry = Registry(auth_off=True)
    registry.register(capability_schema_version=None)
    registry.heartbeats(3, every=15.0, gpus=None, probe_age_seconds=None, running_jobs=None)
    assert registry.node().status == "ready"
    registry.do(ConnectionLost(1))
    registry.pass_time(5.0)
    assert ack(registry.register(2, "node-1", capability_schema_version=None)).node_id == "node-1"


def test_a2_the_ack_says_registering_whatever_the_status() -> None:
    registry = Registry()
    record = registry.ready()
    assert ack(registry.register(1, "node-1")).status == "registering"
    assert record.status == "registering"


def test_an_ack_holds_the_intervals_and_the_session_epoch() -> None:
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
    assert (record.liveness.healthy_heartbeats, record.liveness.recent, record.liveness.usage) == (
        0,
        (),
        None,
    )
    registry.heartbeats(2)
    assert record.status == "registering"
    registry.heartbeats(1)
    assert record.status == "ready"


def test_a_newer_proven_session_takes_over_and_the_old_one_is_refused_and_closed() -> None:
    registry = Registry()
    record = registry.ready()
    taken = registry.do(RegistrationReceived(2, declaration(), "unused", credential=proof("node-1")))
    assert codes(taken, 1) == ["SESSION_SUPERSEDED"]
    assert closed(taken) == [(1, 1008)]
    (noted,) = logged(taken, "session_superseded")
    assert noted.fields["session_epoch"] == 1
    assert ack(taken).session_epoch == 2
    assert record.connection == 2


def test_a_superseded_session_receives_the_address_of_the_newer_one_and_so_does_the_log() -> None:
    registry = Registry()
    registry.ready()
    taken = registry.arrive(proof("node-1"), 2, "node-1")
    (sent,) = [one.message for one in of(Send, taken) if one.connection == 1]
    assert isinstance(sent, NodeError)
    assert sent.message.startswith("a newer session, from 10.0.0.2, proved the same identity: ")
    (noted,) = logged(taken, "session_superseded")
    assert (noted.fields["address"], noted.fields["newer_address"]) == ("10.0.0.1", "10.0.0.2")


def test_late_frames_of_a_superseded_session_are_ignored() -> None:
    registry = Registry()
    record = registry.ready()
    registry.do(RegistrationReceived(2, declaration(), "unused", credential=proof("node-1")))
    assert registry.heartbeat(1) == []
    assert registry.do(unregistration(1)) == []
    assert registry.register(1) == []
    assert record.status == "registering"
    assert record.liveness.healthy_heartbeats == 0
    registry.do(ConnectionLost(1))
    assert record.connection == 2


def test_a_lost_connection_changes_no_status() -> None:
    registry = Registry()
    record = registry.ready()
    lost = registry.do(ConnectionLost(1))
    assert logged(lost, "node_disconnected")
    assert (record.status, record.connected) == ("ready", False)


def test_a_registration_lists_its_jobs_in_flight() -> None:
    registry = Registry()
    registry.register(running_jobs=("job-1", "job-2"))
    assert registry.node().in_flight_jobs == 2
    registry.heartbeat(running_jobs=("job-1",), gpus=figures())
    assert registry.node().in_flight_jobs == 1


def test_a_registration_leaves_no_figure_of_the_session_before() -> None:
    registry = Registry()
    record = registry.ready()
    message = declaration("node-1")
    registry.do(RegistrationReceived(1, message, "unused", proof("node-1"), round_trip_seconds=0.02))
    assert (record.liveness.usage, record.liveness.last_heartbeat_at, record.liveness.probe_age_seconds) == (
        None,
        None,
        None,
    )
    assert record.liveness.round_trip_seconds == 0.02
    registry.do(RegistrationReceived(1, message, "unused", proof("node-1")))
    assert record.liveness.round_trip_seconds is None


def test_a_registration_that_lists_no_jobs_leaves_none_of_the_session_before() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1", "job-2"))
    registry.arrive(proof("node-1"), 1, "node-1")
    assert (record.in_flight_jobs, record.jobs.in_order, record.jobs.ids) == (0, None, None)


def test_a_received_registration_and_its_outcome_are_logged() -> None:
    registry = Registry()
    done = registry.register(hardware=hardware(2))
    (arrived,), (registered,) = logged(done, "node_register_received"), logged(done, "node_registered")
    assert arrived.fields == {"schema_version": "1.1", "gpu_count": 2, "address": "10.0.0.1"}
    assert registered.fields["node_id"] == "node-1"
    assert registered.fields["session_epoch"] == 1


def test_a_registration_that_was_under_way_for_long_does_not_supersede_a_session_that_called_later() -> None:
    registry = Registry()
    record = registry.ready()
    registry.come_back(5)
    epoch = record.epoch
    sent = registry.come_back(3)
    assert codes(sent, 3) == ["SESSION_SUPERSEDED"]
    assert closed(sent) == [(3, 1008)]
    assert (record.connection, record.epoch) == (5, epoch)
    assert [entry.fields["code"] for entry in logged(sent, "node_register_refused")] == ["SESSION_SUPERSEDED"]
    assert registry.do(unregistration(3)) == []
    assert record.status != "offline"


def test_an_unregistration_puts_a_node_offline_at_once_and_closes() -> None:
    registry = Registry()
    record = registry.ready()
    left = registry.do(unregistration(reason="upgrade"))
    assert (record.status, record.reason_code) == ("offline", "unregistered")
    assert statuses(left) == ["offline"]
    assert closed(left) == [(1, 1001)]


def test_an_unregistration_with_a_drain_lets_the_jobs_finish() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    assert statuses(registry.do(unregistration(drain=True, deadline_seconds=30))) == ["draining"]
    assert record.desired.drain is not None
    assert record.desired.drain.deadline == registry.now + 30
    left = registry.heartbeat(running_jobs=())
    assert statuses(left) == ["offline"]
    assert closed(left) == [(1, 1001)]


def test_a_drain_that_the_node_requested_ends_when_it_registers_again() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.do(unregistration(drain=True))
    registry.do(ConnectionLost(1))
    again = registry.do(RegistrationReceived(2, declaration(), "unused", credential=proof("node-1")))
    assert statuses(again, 2) == ["registering"]
    assert (record.reason_code, record.desired.drain) == ("resumed", None)


def test_a_drain_requested_while_registering_is_remembered_and_ends_offline_once_the_node_is_healthy() -> (
    None
):
    registry = Registry()
    record = registry.ready()
    registry.register(1, "node-1")
    assert statuses(registry.do(unregistration(drain=True))) == ["registering"]
    assert record.desired.drain is not None
    left = registry.heartbeats(3)
    assert statuses(left) == ["ready", "draining", "offline"]
    assert (record.reason_code, closed(left)) == ("drain_complete", [(1, 1001)])


def test_a_node_with_a_drain_while_registering_and_falls_silent_times_out() -> None:
    registry = Registry()
    registry.register()
    registry.do(unregistration(drain=True))
    registry.do(ConnectionLost(1))
    registry.pass_time(46.0)
    assert registry.node().reason_code == "heartbeat_timeout"


def test_a_node_may_ask_again_for_its_drain_with_another_deadline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.do(unregistration(drain=True, deadline_seconds=30))
    (sent,) = of(SendStatus, registry.do(unregistration(drain=True, deadline_seconds=90)))
    assert record.desired.drain is not None
    assert record.desired.drain.deadline == sent.drain_deadline == registry.now + 90


def test_a_node_cannot_ask_for_a_drain_that_never_ends() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.do(unregistration(drain=True, deadline_seconds=1e15))
    assert record.desired.drain is not None
    assert record.desired.drain.deadline == registry.now + LONGEST_DRAIN_SECONDS


@pytest.mark.parametrize("drain", [False, True])
def test_the_reason_of_an_unregistration_is_clipped(*, drain: bool) -> None:
    registry = Registry()
    record = registry.ready()
    left = registry.do(unregistration(drain=drain, reason="r" * 4000))
    assert all(len(one.reason) < 300 for one in of(SendStatus, left) + of(CloseConnection, left))
    assert record.desired.drain is None or len(record.desired.drain.reason) == 200


def test_an_unregistration_for_a_node_of_another_connection_is_refused() -> None:
    registry = Registry()
    registry.ready()
    assert codes(registry.do(unregistration(2)), 2) == ["UNKNOWN_NODE"]
    assert registry.node().status == "ready"


def test_an_unregistration_never_shortens_or_lifts_an_operators_drain() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.drain()
    drain = record.desired.drain
    assert statuses(registry.do(unregistration(drain=True, deadline_seconds=0))) == ["draining"]
    assert record.desired.drain is drain


def test_an_unregistration_after_an_operators_drain_closes_the_open_session() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    left = registry.do(unregistration())
    assert closed(left) == [(1, 1001)]
    assert record.status == "offline"
    assert record.reason_code == "drain_complete"


def code_of(message: NodeRegister, *, allow_simulated: bool = False) -> str | None:
    refusal = refusal_of(message, allow_simulated=allow_simulated)
    return None if refusal is None else refusal.code


@pytest.mark.parametrize("found", [hardware(0), hardware(3, memory_gb=0), hardware(1, memory_gb=None)])
def test_r01_without_a_gpu_of_known_memory_nothing_is_registered(found: Hardware) -> None:
    assert code_of(declaration(hardware=found)) == ErrorCode.GPU_REQUIRED


def test_r01_one_gpu_with_memory_among_others_without_is_enough() -> None:
    mixed = (
        GpuDeclaration(name="A"),
        GpuDeclaration(name="B", memory_gb=0),
        GpuDeclaration(name="C", memory_gb=1),
    )
    assert code_of(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=mixed))) is None


@pytest.mark.parametrize("version", [None, ""])
def test_r04_a_declaration_without_a_schema_version_follows_1_0(version: str | None) -> None:
    message = declaration(capability_schema_version=version)
    assert message.schema_version == "1.0"
    assert code_of(message) is None


def test_r05_an_unknown_schema_version_is_refused_with_those_supported() -> None:
    refusal = refusal_of(
        declaration("n", capability_schema_version="9.9", hardware=hardware(0)), allow_simulated=False
    )
    assert refusal is not None
    assert (refusal.code, refusal.node_id) == (ErrorCode.INVALID_CAPABILITY_SCHEMA, "n")
    assert refusal.details == {"supported": ["1.0", "1.1"]}


def test_a_simulated_node_is_taken_only_where_that_is_allowed() -> None:
    message = declaration(simulated=True)
    assert code_of(message) == ErrorCode.SIMULATED_NODE_REFUSED
    assert code_of(message, allow_simulated=True) is None


@pytest.mark.parametrize(
    ("uuids", "second"),
    [
        (("GPU-a", "GPU-b", "GPU-a"), 2),
        (("GPU-a", "GPU-a", "GPU-a"), 1),
        ((None, "#2", None), 2),
        (("#1", None), 1),
    ],
)
def test_two_gpus_under_one_uuid_are_malformed_and_the_refusal_says_which(
    uuids: tuple[str | None, ...], second: int
) -> None:
    twins = tuple(GpuDeclaration(name="A", memory_gb=24, uuid=uuid) for uuid in uuids)
    refusal = refusal_of(
        declaration("n", hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=twins)), allow_simulated=False
    )
    assert refusal is not None
    assert (refusal.code, refusal.node_id) == (ErrorCode.INVALID_MESSAGE, "n")
    [error] = (refusal.details or {})["errors"]
    assert error["path"] == f"$.hardware.gpus[{second}].uuid"
    assert error["path"] in refusal.message


def test_gpus_without_a_uuid_are_told_apart_by_their_position() -> None:
    nameless = tuple(GpuDeclaration(name="A", memory_gb=24) for _ in range(2))
    assert code_of(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=nameless))) is None


def test_r05_an_unknown_schema_version_is_refused() -> None:
    registry = Registry()
    assert codes(registry.register(capability_schema_version="9.9")) == ["INVALID_CAPABILITY_SCHEMA"]
    assert registry.fleet.nodes() == []


def test_a_simulated_node_is_refused_unless_allowed() -> None:
    assert codes(Registry().register(simulated=True)) == ["SIMULATED_NODE_REFUSED"]
    registry = Registry(allow_simulated=True)
    registry.register(simulated=True)
    assert registry.node().declared.registration.simulated


def test_r04_a_registration_without_a_schema_version_is_taken_as_1_0() -> None:
    assert ack(Registry().register(capability_schema_version=None)).capability_schema_version == "1.0"
