"""Heartbeats that a gateway counts instead of handing them on: the fleet decides as if it had seen each."""

from typing import Any

import pytest

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import Amounts, HeartbeatReceived, HeartbeatRepeated
from gpu_agent.registry.job import Job
from gpu_agent.wire.messages import InstalledModel, ResourceUsage
from tests.registry.harness import Registry, codes, figures, hardware, heartbeat


@pytest.fixture(params=[False, True], ids=["one process", "gateways"])
def registry(request: pytest.FixtureRequest) -> Registry:
    return Registry(auth_off=True, gateways=request.param)


def test_a_reading_that_grows_old_frees_no_gpu_that_an_ended_claim_holds(registry: Registry) -> None:
    unused: dict[str, Any] = {"running_jobs": None, "gpus": figures(processes=0)}
    registry.register()
    registry.heartbeats(3, probe_age_seconds=0.5, **unused)
    registry.claim("job", gpu_count=1, ttl_seconds=40)
    for age in (0.5, 0.5, 15.5, 30.5):
        registry.pass_time(15)
        registry.heartbeat(probe_age_seconds=age, **unused)
    assert registry.node().liveness.probe_age_seconds == 30.5
    assert isinstance(registry.claim("job-2", gpu_count=1), NoAvailableNode)


def test_heartbeats_of_another_node_are_refused_each_and_count_for_nothing(registry: Registry) -> None:
    registry.ready()
    foreign = heartbeat("node-2")
    for _ in range(12):
        registry.pass_time(15)
        assert codes(registry.do(HeartbeatReceived(1, foreign))) in (["UNKNOWN_NODE"], [])
    assert registry.node().status == "offline"


def test_a_heartbeat_that_is_refused_for_its_parts_is_refused_each_time(registry: Registry) -> None:
    registry.ready()
    long = tuple(
        InstalledModel(model_id=f"model-{number}", version="v" * 250, revision="r" * 250)
        for number in range(4000)
    )
    before = registry.node().liveness.healthy_heartbeats
    for _ in range(3):
        assert len(codes(registry.heartbeat(installed_models=long))) == 1
    assert registry.node().liveness.healthy_heartbeats == before


def test_what_is_known_of_a_claims_gpus_begins_with_the_claim(registry: Registry) -> None:
    registry.register()
    registry.heartbeats(3, gpus=figures(utilization_percent=88.0))
    registry.heartbeats(8, gpus=figures(utilization_percent=0.0), every=5.0)
    registry.claim("job", gpu_count=1)
    registry.heartbeats(3, gpus=figures(utilization_percent=0.0), every=15.0)
    record = registry.fleet.claim_history.of_job("job")
    assert record is not None
    assert record.use["node-1", "GPU-0"].highest_percent == 0.0


def test_figures_that_change_nothing_are_a_minute_old_at_most(registry: Registry) -> None:
    registry.register()
    registry.heartbeats(3, gpus=figures(temperature_c=40.0))
    registry.heartbeats(5, gpus=figures(temperature_c=70.0), every=15.0)
    assert registry.node().gpus["GPU-0"].temperature_c == 70.0


def test_free_memory_and_load_are_taken_in_with_a_heartbeat_of_which_nothing_else_is_new(
    registry: Registry,
) -> None:
    registry.register()
    registry.heartbeats(3, gpus=figures(memory_used_mb=1000))
    for used, percent in ((75_000, 31.0), (1000, 57.0), (75_000, 85.0), (74_000, 5.0)):
        usage = ResourceUsage(cpu_percent=50.0, mem_percent=50.0, gpu_percent=percent)
        registry.pass_time(2.0)
        registry.heartbeat(gpus=figures(memory_used_mb=used), resource_usage=usage)
        choice = registry.fleet.select(Job(job_id="job", min_gpu_memory_mb=10_000), registry.now)
        assert isinstance(choice, NoAvailableNode) is (used > 70_000)
        assert registry.node().liveness.usage == (50.0, 50.0, percent, None, None)
        assert registry.node().gpus["GPU-0"].memory_used_mb == used


def test_a_node_may_list_no_gpu_after_it_declared_others(registry: Registry) -> None:
    registry.register()
    registry.heartbeats(3)
    registry.heartbeat(hardware=hardware(2), gpus=())
    assert registry.node().gpus.usable == 0


def test_the_memory_of_gpus_that_are_not_all_ok_comes_with_whole_heartbeats() -> None:
    registry = Registry()
    registry.register()
    registry.heartbeats(3, gpus=figures(memory_used_mb=1000, health="degraded"))
    assert registry.fleet.wants_exact_figures(1)
    registry.do(HeartbeatRepeated(1, 0.0, 1.0, Amounts(5.0, 5.0, None, None, (9000,))))
    assert registry.node().gpus["GPU-0"].memory_used_mb == 1000
    registry.heartbeat(gpus=figures(memory_used_mb=1000))
    assert not registry.fleet.wants_exact_figures(1)
    registry.do(HeartbeatRepeated(1, 0.0, 1.0, Amounts(5.0, 5.0, None, None, (9000,))))
    assert registry.node().gpus["GPU-0"].memory_used_mb == 9000


def test_a_row_that_arrives_late_lets_no_more_time_pass_than_has_passed() -> None:
    registry = Registry()
    registry.ready()
    began = registry.node().liveness.last_heartbeat_at or 0.0
    for _ in range(10):
        registry.pass_time(2.0)
        registry.do(HeartbeatRepeated(1, 0.9, 1.0))
    assert registry.node().liveness.last_heartbeat_at == pytest.approx(began + 20.0 - 0.9)


def test_what_repeats_a_refused_heartbeat_counts_for_nothing() -> None:
    registry = Registry()
    registry.ready()
    before = registry.node().liveness.healthy_heartbeats
    registry.do(HeartbeatReceived(1, heartbeat("node-2")))
    assert registry.do(HeartbeatRepeated(1, 0.0, 1.0)) == []
    assert registry.node().liveness.healthy_heartbeats == before
    registry.heartbeat()
    registry.do(HeartbeatRepeated(1, 0.0, 1.0))
    assert registry.node().liveness.healthy_heartbeats == before + 2
