from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.memory import Promise
from gpu_agent.registry.dispatch.placement import fittest
from gpu_agent.registry.dispatch.view import NodeView
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from tests.registry.dispatch.nodes import gpu, gpus, job, node


def view_of(record: NodeRecord, **claims: int) -> NodeView:
    promises = {uuid: Promise(claims=number) for uuid, number in claims.items()}
    return NodeView(record, 0, Thresholds(), promises)


def test_only_usable_gpus_of_that_name_with_enough_free_memory_are_chosen() -> None:
    record = node(
        gpus=gpus(
            gpu("lost", health="lost"),
            gpu("other", name="Tesla T4", memory_mb=90_000),
            gpu("taken", used_mb=20_000),
            gpu("unknown", memory_mb=None),
            gpu("fits", used_mb=1_000),
        )
    )
    wanted = Demand.of(job(gpu_name="l4", min_gpu_memory_mb=10_000))
    assert fittest(view_of(record), wanted) == ("fits",)


def test_gpus_with_fewer_claims_come_first_then_the_freest_then_the_least_busy() -> None:
    states = [
        gpu("claimed"),
        gpu("used", used_mb=4_000),
        gpu("busy", used_mb=2_000),
        gpu("idle", used_mb=2_000),
    ]
    for state, busy in zip(states[2:], (80.0, 10.0), strict=True):
        state.utilization_percent = busy
    view = view_of(node(gpus=gpus(*states)), claimed=1)
    assert fittest(view, Demand.of(job(gpu_count=4))) == ("idle", "busy", "used", "claimed")
    assert fittest(view, Demand.of(job(gpu_count=2))) == ("idle", "busy")


def test_a_job_that_wants_no_gpu_gets_none() -> None:
    assert fittest(view_of(node()), Demand.of(job(gpu_count=0))) == ()


def test_a_use_that_is_no_percentage_counts_as_half() -> None:
    absurd, busy, idle = gpu("absurd"), gpu("busy"), gpu("idle")
    absurd.utilization_percent, busy.utilization_percent, idle.utilization_percent = -1e15, 80.0, 20.0
    record = node(gpus=gpus(absurd, busy, idle))
    assert fittest(view_of(record), Demand.of(job(gpu_count=3))) == ("idle", "absurd", "busy")
