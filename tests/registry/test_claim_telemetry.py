"""Claims against telemetry: idle claims, GPUs used without a claim, duplicates, a job's history (§5.5)."""
# ruff: noqa: ANN401 - parts of requests and heartbeats are passed through as they are

from typing import Any

from gpu_agent.registry.events import GpuCordonRequested
from gpu_agent.wire.messages import GpuFigures
from tests.registry.harness import Registry, figures, hardware, logged


def busy(percent: float | None, count: int = 1, processes: int | None = 1) -> tuple[GpuFigures, ...]:
    return figures(count, utilization_percent=percent, processes=processes)


def claimed(**thresholds: Any) -> Registry:
    registry = Registry(**thresholds)
    registry.ready()
    registry.claim("job", gpu_count=1, ttl_seconds=86_400)
    return registry


def idle_logged(registry: Registry) -> int:
    return len(logged(registry.done, "claim_idle"))


def report(registry: Registry, seconds: float, *, gpus: Any, **parts: Any) -> None:
    parts.setdefault("running_jobs", ("job",))
    registry.heartbeats(round(seconds / 15.0), every=15.0, gpus=gpus, **parts)


def test_a_claim_whose_gpus_stay_idle_is_reported_once() -> None:
    registry = claimed()
    report(registry, 900, gpus=busy(5.0))
    assert idle_logged(registry) == 0
    report(registry, 60, gpus=busy(0.0))
    assert idle_logged(registry) == 1
    report(registry, 1800, gpus=busy(0.0))
    assert idle_logged(registry) == 1


def test_use_ends_the_idle_time_and_a_later_one_is_reported_again() -> None:
    registry = claimed()
    report(registry, 600, gpus=busy(0.0))
    report(registry, 15, gpus=busy(50.0))
    report(registry, 600, gpus=busy(0.0))
    assert idle_logged(registry) == 0
    report(registry, 600, gpus=busy(0.0))
    report(registry, 15, gpus=busy(50.0))
    report(registry, 960, gpus=busy(0.0))
    assert idle_logged(registry) == 2


def test_an_unknown_or_old_figure_starts_the_idle_time_again() -> None:
    registry = claimed()
    for unknown in ({"gpus": busy(None)}, {"gpus": busy(0.0), "probe_age_seconds": 61.0}, {"gpus": None}):
        report(registry, 600, gpus=busy(0.0))
        report(registry, 15, **unknown)
    report(registry, 600, gpus=busy(0.0))
    assert idle_logged(registry) == 0


def test_a_gpu_with_processes_of_no_claim_is_reported_at_the_second_heartbeat_once() -> None:
    registry = Registry()
    registry.ready()
    report(registry, 15, gpus=busy(90.0, processes=2), running_jobs=())
    assert not logged(registry.done, "gpu_used_without_claim")
    report(registry, 60, gpus=busy(90.0, processes=2), running_jobs=())
    (one,) = logged(registry.done, "gpu_used_without_claim")
    assert one.fields == {"node_id": "node-1", "gpu_uuid": "GPU-0", "processes": 2}
    report(registry, 15, gpus=busy(0.0, processes=0), running_jobs=())
    report(registry, 30, gpus=busy(90.0, processes=1), running_jobs=())
    assert len(logged(registry.done, "gpu_used_without_claim")) == 2


def test_no_use_is_reported_on_a_cordoned_gpu_or_where_jobs_without_gpus_ran_lately() -> None:
    registry = Registry()
    registry.ready()
    registry.do(GpuCordonRequested(registry.ref(), "node-1", "GPU-0", "mine"))
    report(registry, 60, gpus=busy(90.0), running_jobs=())
    registry.do(GpuCordonRequested(registry.ref(), "node-1", "GPU-0", None))
    report(registry, 15, gpus=busy(0.0, processes=0), running_jobs=())
    registry.claim("slot")
    report(registry, 60, gpus=busy(90.0), running_jobs=("slot",))
    registry.release("slot")
    report(registry, 600, gpus=busy(90.0), running_jobs=())
    assert not logged(registry.done, "gpu_used_without_claim")
    report(registry, 600, gpus=busy(90.0), running_jobs=())
    assert len(logged(registry.done, "gpu_used_without_claim")) == 1


def test_a_gpu_that_two_nodes_declare_is_reported_once_for_each() -> None:
    registry = Registry()
    registry.ready(1, hardware=hardware(1))
    registry.ready(2, hardware=hardware(1))
    registry.heartbeats(2, 1)
    registry.heartbeats(2, 2)
    shown = [
        (one.fields["node_id"], one.fields["other_nodes"])
        for one in logged(registry.done, "gpu_uuid_duplicate")
    ]
    assert sorted(shown) == [("node-1", "node-2"), ("node-2", "node-1")]


def test_a_claim_remembers_how_busy_its_gpus_were_for_an_hour_after_its_end() -> None:
    registry = claimed()
    report(registry, 30, gpus=busy(20.0))
    report(registry, 30, gpus=busy(80.0))
    report(registry, 15, gpus=figures(health="failed"))
    registry.release("job")
    record = registry.fleet.claim_history.last_of("job", registry.now)
    assert record is not None
    use = record.use["node-1", "GPU-0"]
    assert (use.highest_percent, round(use.mean_percent or 0)) == (80.0, 41)
    assert [text for _, text in record.notes] == ["GPU GPU-0 on node-1: failed"]
    assert record.end == "released"
    assert registry.fleet.claim_history.last_of("job", registry.now + 3601) is None


def test_events_and_exclusions_of_a_node_name_its_machine() -> None:
    registry = Registry()
    registry.ready(hostname="gpu-7.example")
    (changed, *_) = logged(registry.done, "node_status_changed")
    assert changed.fields["hostname"] == "gpu-7.example"
    refused = registry.claim("job", gpu_count=9)
    ((one,),) = refused.examples.values()
    assert one.hostname == "gpu-7.example"
    assert registry.claim("fits", gpu_count=1).grants[0].hostname == "gpu-7.example"


def test_a_time_without_figures_starts_the_idle_time_again() -> None:
    registry = claimed()
    report(registry, 600, gpus=busy(0.0))
    registry.let_store_fail()
    registry.renew("job", ttl_seconds=80_000)  # the save by which the failure is noticed
    registry.pass_time(600.0)
    registry.recover(outage_seconds=600.0)
    report(registry, 15, gpus=busy(0.0))
    assert registry.fleet.claim_of("job") is not None
    assert idle_logged(registry) == 0
