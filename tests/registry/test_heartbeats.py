import pytest

from gpu_agent.registry.events import ConnectionLost, HeartbeatReceived
from gpu_agent.wire.messages import ResourceUsage
from tests.registry.harness import Registry, codes, figures, hardware, heartbeat, logged, model, statuses

GONE = figures(health="lost", reasons=("xid_79",))
STALE = 61.0
"""A probe age that makes a heartbeat unhealthy without being definite."""


def test_s01_a_node_is_ready_after_n_healthy_heartbeats_and_receives_it() -> None:
    registry = Registry(healthy_heartbeats_needed=3)
    registry.register()
    assert statuses(registry.heartbeats(2)) == []
    assert statuses(registry.heartbeats(1)) == ["ready"]
    record = registry.node()
    assert (record.reason_code, record.previous_status) == ("health_checks_passed", "registering")


def test_s01_an_unhealthy_heartbeat_starts_the_count_again() -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(2)
    registry.heartbeats(1, probe_age_seconds=STALE)
    registry.heartbeats(2)
    assert registry.node().status == "registering"
    registry.heartbeats(1)
    assert registry.node().status == "ready"


def test_a_number_of_jobs_that_is_not_known_leaves_what_is_claimed_and_changes_nothing_else() -> None:
    registry = Registry()
    registry.ready()
    busy = ResourceUsage(cpu_percent=5.0, mem_percent=5.0, running_jobs=2)
    registry.heartbeat(running_jobs=None, resource_usage=busy)
    assert registry.node().in_flight_jobs == 2
    unknown = ResourceUsage(cpu_percent=5.0, mem_percent=5.0)
    registry.heartbeat(running_jobs=None, resource_usage=unknown)
    assert (registry.node().jobs.count, registry.node().in_flight_jobs) == (None, 0)
    assert registry.heartbeat(running_jobs=None, resource_usage=unknown) == []


def test_a_healthy_heartbeat_of_a_ready_node_has_no_effect() -> None:
    registry = Registry()
    registry.ready()
    registry.heartbeats(2)
    assert registry.heartbeats(3) == []


def test_a_node_that_turns_out_to_be_near_is_chosen_before_one_that_is_far() -> None:
    registry = Registry()
    for connection in (1, 2):
        registry.ready(connection)
    registry.do(HeartbeatReceived(1, heartbeat("node-1"), round_trip_seconds=0.2))
    registry.do(HeartbeatReceived(2, heartbeat("node-2"), round_trip_seconds=0.002))
    assert registry.claim("job-1").grants[0].node_id == "node-2"
    assert registry.heartbeat(2) == []
    assert registry.node("node-2").liveness.round_trip_seconds == 0.002


@pytest.mark.parametrize("status", ["registering", "ready"])
def test_no_usable_gpu_degrades_a_node_at_once(status: str) -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(3 if status == "ready" else 1)
    assert registry.node().status == status
    assert statuses(registry.heartbeat(gpus=GONE)) == ["degraded"]
    assert registry.node().reason_code == "gpu_unavailable"
    assert registry.node().reason == "gpus: the GPU is not usable (lost: xid_79)"


def test_s03_a_required_model_that_goes_degrades_a_node_and_takes_it_from_dispatch() -> None:
    registry = Registry(required_models=("asr",))
    record = registry.ready(installed_models=(model("asr"),))
    sent = registry.heartbeat(installed_models=())
    assert statuses(sent) == ["degraded"]
    assert record.reason_code == "model_missing"
    assert registry.claim("job-1").counts == {"status_not_ready": 1}


def test_s03_a_required_model_that_stops_being_ready_is_missing_too() -> None:
    registry = Registry(required_models=("asr",))
    record = registry.ready(installed_models=(model("asr"),))
    registry.heartbeat(capability_state={"asr": "error"})
    assert (record.status, record.reason_code) == ("degraded", "model_missing")


def test_s04_a_recovered_node_is_ready_and_a_candidate_again() -> None:
    registry = Registry(required_models=("asr",))
    record = registry.ready(installed_models=(model("asr"),))
    registry.heartbeat(capability_state={"asr": "error"})
    registry.heartbeat(capability_state={"asr": "ready"})
    registry.heartbeats(1)
    assert record.status == "degraded"
    assert statuses(registry.heartbeats(1)) == ["ready"]
    assert record.reason_code == "recovered"
    assert registry.claim("job-1").grants[0].node_id == "node-1"


def test_a5_a_degraded_node_takes_no_job_and_may_return() -> None:
    registry = Registry()
    registry.ready()
    registry.heartbeat(gpus=GONE)
    assert registry.claim("job-1").counts == {"status_not_ready": 1}
    registry.heartbeats(3)
    assert registry.claim("job-1").grants[0].node_id == "node-1"


def test_three_unhealthy_heartbeats_in_a_row_degrade_a_ready_node() -> None:
    registry = Registry(consecutive_failures=3, failures_in_window=4)
    record = registry.ready()
    registry.heartbeats(2, probe_age_seconds=STALE)
    assert record.status == "ready"
    registry.heartbeats(1, probe_age_seconds=STALE)
    assert (record.status, record.reason_code) == ("degraded", "health_checks_failed")


def test_a_node_that_flaps_is_degraded() -> None:
    registry = Registry()
    record = registry.ready()
    for age in (STALE, 1.0, STALE, 1.0):
        registry.heartbeats(1, probe_age_seconds=age)
        assert record.status == "ready"
    registry.heartbeats(1, probe_age_seconds=STALE)
    assert (record.status, record.reason_code) == ("degraded", "flapping")


def test_registering_again_counts_as_no_flap() -> None:
    registry = Registry()
    record = registry.ready()
    for age in (STALE, 1.0, STALE, 1.0):
        registry.heartbeats(1, probe_age_seconds=age)
    registry.register()
    registry.heartbeats(3)
    registry.heartbeats(1, probe_age_seconds=STALE)
    assert record.status == "ready"


def test_while_registering_a_passing_failure_degrades_nothing() -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(5, probe_age_seconds=STALE)
    assert registry.node().status == "registering"


def test_a_hung_driver_degrades_a_node_with_nvml_hung_in_its_checks_and_it_recovers() -> None:
    registry = Registry()
    record = registry.ready()
    hung = figures(health="unknown", reasons=("nvml_hung",))
    sent = registry.heartbeat(gpus=hung, probe_age_seconds=STALE)
    assert statuses(sent) == ["degraded"]
    assert "nvml_hung" in record.reason
    registry.heartbeats(3)
    assert record.status == "ready"


def test_a_heartbeat_from_another_connection_is_from_an_unknown_node_and_counts_for_nothing() -> None:
    registry = Registry()
    record = registry.ready()
    heard = record.liveness.last_seen_at
    registry.pass_time(5.0)
    assert codes(registry.do(HeartbeatReceived(2, heartbeat("node-1"))), 2) == ["UNKNOWN_NODE"]
    assert codes(registry.do(HeartbeatReceived(1, heartbeat("node-2")))) == ["UNKNOWN_NODE"]
    assert record.liveness.last_seen_at == heard


def test_a_heartbeat_after_the_connection_was_lost_is_from_an_unknown_node() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    assert codes(registry.heartbeat()) == ["UNKNOWN_NODE"]


def test_each_part_that_a_heartbeat_brings_replaces_the_declared_one_without_a_change_of_status() -> None:
    registry = Registry()
    record = registry.ready(labels={"zone": "a"}, installed_models=(model("asr"),))
    sent = registry.heartbeat(
        accept_public_jobs=True,
        labels={"rack": "7"},
        max_concurrent_jobs=9,
        hardware=hardware(2),
        installed_models=(model("nmt"),),
        gpus=figures(2),
    )
    assert sent == []
    assert record.declared.registration.accept_public_jobs
    assert record.declared.labels == {"rack": "7"}
    assert record.declared.max_concurrent_jobs == 9
    assert (len(record.gpus), record.gpus.usable) == (2, 2)
    assert record.declared.ready_models == {"nmt"}


def test_what_a_heartbeat_replaces_decides_the_next_claim() -> None:
    registry = Registry()
    registry.ready()
    assert registry.claim("job-1", public=True).counts == {"not_in_public_pool": 1}
    registry.heartbeat(accept_public_jobs=True)
    assert registry.claim("job-1", public=True).grants[0].node_id == "node-1"


def test_load_above_a_limit_decides_the_next_claim() -> None:
    registry = Registry(max_cpu_percent=90.0)
    registry.ready()
    registry.heartbeat(resource_usage=ResourceUsage(cpu_percent=95.0, mem_percent=10.0))
    assert registry.claim("job-1").counts == {"resource_threshold_exceeded": 1}
    registry.heartbeat(resource_usage=ResourceUsage(cpu_percent=85.0, mem_percent=10.0))
    assert registry.claim("job-1").grants[0].node_id == "node-1"


def test_gpu_memory_in_use_decides_the_next_claim() -> None:
    registry = Registry()
    registry.ready()
    registry.heartbeat(gpus=figures(memory_used_mb=80 * 1024 - 512))
    assert registry.claim("job-1", min_gpu_memory_mb=1024).counts == {"capacity_exceeded": 1}
    registry.heartbeat(gpus=figures(memory_used_mb=79 * 1024 - 1))
    assert registry.claim("job-1", min_gpu_memory_mb=1024).grants[0].node_id == "node-1"


def test_checks_are_logged_for_an_unhealthy_heartbeat_and_on_request_for_every_one() -> None:
    quiet, loud = Registry(), Registry(debug=True)
    for registry in (quiet, loud):
        registry.ready()
        registry.heartbeats(2)
    assert quiet.heartbeats(1) == []
    (entry,) = logged(loud.heartbeats(1), "health_check")
    assert (entry.level, entry.fields["ok"]) == ("debug", True)
    (entry,) = logged(quiet.heartbeats(1, probe_age_seconds=STALE), "health_check")
    assert (entry.level, entry.fields["ok"]) == ("debug", False)


def test_a_heartbeat_of_absurd_figures_stops_no_clock() -> None:
    registry = Registry()
    registry.ready(1)
    registry.ready(2)
    absurd = ResourceUsage.model_construct(
        cpu_percent=5.0, mem_percent=5.0, gpu_percent=5.0, gpu_mem_percent=1e308, running_jobs=0
    )
    registry.heartbeat(2, gpus=None, resource_usage=absurd)
    claim = registry.claim("job-1", allowed_nodes=("node-2",), min_gpu_memory_mb=1000)
    assert claim.grants[0].node_id == "node-2"
    registry.pass_time(46.0)
    assert [record.status for record in registry.fleet.nodes()] == ["offline", "offline"]


def test_a_heartbeat_that_declares_two_gpus_under_one_uuid_is_refused_and_counts_for_nothing() -> None:
    registry = Registry()
    registry.ready()
    before = registry.node().liveness.last_heartbeat_at
    registry.pass_time(5.0)
    twins = hardware(1).model_copy(update={"gpus": hardware(1).gpus * 2})
    done = registry.heartbeat(hardware=twins)
    assert codes(done) == ["INVALID_MESSAGE"]
    assert registry.node().liveness.last_heartbeat_at == before
    assert registry.node().declared.registration.hardware == hardware(1)


def test_a_heartbeat_before_any_registration_is_from_an_unknown_node() -> None:
    registry = Registry()
    assert codes(registry.heartbeat(1, "node-9")) == ["UNKNOWN_NODE"]
