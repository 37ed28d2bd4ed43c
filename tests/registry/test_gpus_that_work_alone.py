"""GPUs that take only some jobs: where the fabric is faulty, and where they wait for a reset."""
# ruff: noqa: ANN401 - answers of the registry are of many types

from typing import Any

import pytest

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.gpus import GpuState
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.gpu_reasons import NO_NEW_JOBS, ONE_GPU_ONLY
from gpu_agent.wire.messages import GpuFigures, Hardware
from tests.registry.harness import Registry, figures, hardware, logged


def reported(
    *faulty: int, code: str = "fabric_route_unhealthy", connection: int = 1
) -> tuple[GpuFigures, ...]:
    """Four GPUs, of which these are degraded for this reason."""
    gpus = (one.model_copy(update={"uuid": f"{one.uuid}-{connection}"}) for one in figures(4))
    return tuple(
        one.model_copy(update={"health": "degraded", "reasons": (code,)}) if place in faulty else one
        for place, one in enumerate(gpus)
    )


def ready(*faulty: int, code: str = "fabric_route_unhealthy", connection: int = 1) -> Registry:
    registry = Registry()
    join(registry, *faulty, code=code, connection=connection)
    return registry


def join(registry: Registry, *faulty: int, code: str = "fabric_route_unhealthy", connection: int = 1) -> None:
    """Bring a node with four GPUs up to ready, then report these as faulty."""
    gpus = tuple(one.model_copy(update={"uuid": f"{one.uuid}-{connection}"}) for one in hardware(4).gpus)
    machine = Hardware(cpu_cores=32, memory_gb=256, gpus=gpus)
    registry.register(connection, hardware=machine, max_concurrent_jobs=16)
    registry.heartbeats(3, connection, gpus=reported(connection=connection))
    assert registry.node(f"node-{connection}").status == "ready"
    registry.heartbeat(connection, gpus=reported(*faulty, code=code, connection=connection))


def refused(answered: object) -> tuple[list[ExclusionReason], str, str]:
    assert isinstance(answered, NoAvailableNode), answered
    (examples,) = answered.examples.values()
    return list(answered.counts), examples[0].need, examples[0].have


def granted(answered: Any) -> set[str]:
    return {uuid for grant in answered.grants for uuid in grant.gpu_uuids}


@pytest.mark.parametrize("code", sorted(ONE_GPU_ONLY))
def test_a_job_of_several_gpus_gets_none_whose_fabric_is_faulty_and_a_job_of_one_does(code: str) -> None:
    registry = ready(0, 1, code=code)
    assert granted(registry.claim("pair", gpu_count=2)) == {"GPU-2-1", "GPU-3-1"}
    assert granted(registry.claim("one", gpu_count=1)) < {"GPU-0-1", "GPU-1-1"}
    assert granted(registry.claim("other", gpu_count=1)) < {"GPU-0-1", "GPU-1-1"}


def test_a_job_of_one_gpu_gets_one_that_works_alone_so_that_the_others_stay_together() -> None:
    registry = ready(2)
    assert granted(registry.claim("one", gpu_count=1)) == {"GPU-2-1"}
    assert len(granted(registry.claim("three", gpu_count=3))) == 3


def test_a_job_that_needs_more_gpus_than_work_together_is_refused_with_the_reason() -> None:
    reasons, need, have = refused(ready(3).claim("all", gpu_count=4))
    assert reasons == [ExclusionReason.GPU_UNAVAILABLE]
    assert need == "4 usable GPUs that work together"
    assert have == "3 (NVIDIA H100: 3 ok and 1 degraded (jobs of one GPU only))"


def test_a_job_on_several_nodes_gets_no_gpu_whose_fabric_is_faulty() -> None:
    registry = ready(0, 1, 2, 3)
    join(registry, connection=2)
    assert isinstance(registry.claim("wide", gpu_count=1, nodes=2), NoAvailableNode)
    registry.heartbeat(1, gpus=reported(0, 1, 2))
    claim = registry.claim("wide", gpu_count=1, nodes=2)
    assert "GPU-3-1" in granted(claim)


def test_gpus_that_share_memory_between_jobs_work_together_by_the_same_rule() -> None:
    registry = ready(0, 1, 2)
    assert isinstance(
        registry.claim("pair", gpu_count=2, gpu_sharing="memory", min_gpu_memory_mb=1_000), NoAvailableNode
    )
    assert registry.claim("one", gpu_sharing="memory", min_gpu_memory_mb=1_000).grants[0].gpu_uuids


def test_a_fault_that_comes_goes_or_replaces_another_counts_at_the_next_heartbeat() -> None:
    registry = ready(0, code="hw_slowdown")
    registry.release("all", registry.claim("all", gpu_count=4).claim_id)
    registry.heartbeat(gpus=reported(0, code="fabric_incomplete"))
    assert isinstance(registry.claim("all", gpu_count=4), NoAvailableNode)
    registry.heartbeat(gpus=reported())
    assert len(granted(registry.claim("all", gpu_count=4))) == 4


@pytest.mark.parametrize("code", ["row_remap_pending", "xid_48", "xid_151", "recovery_drain_and_reset"])
def test_a_gpu_that_waits_for_a_reset_finishes_its_job_and_gets_no_new_one(code: str) -> None:
    registry = ready()
    claim = registry.claim("old", gpu_count=4)
    events = registry.heartbeat(gpus=reported(0, 1, 2, code=code), running_jobs=("old",))
    assert not logged(events, "claim_gpu_unusable")
    assert registry.renew("old", claim.claim_id)
    registry.release("old", claim.claim_id)
    registry.heartbeat(gpus=reported(0, 1, 2, code=code), running_jobs=())
    assert granted(registry.claim("new", gpu_count=1)) == {"GPU-3-1"}
    reasons, _, have = refused(registry.claim("pair", gpu_count=2))
    assert reasons == [ExclusionReason.GPU_UNAVAILABLE]
    assert have == "1 (NVIDIA H100: 3 degraded (no new jobs) and 1 ok)"


def test_a_node_whose_only_gpus_wait_for_a_reset_takes_no_job_and_keeps_the_claims_that_it_has() -> None:
    registry = ready()
    claim = registry.claim("old", gpu_count=4)
    waiting = reported(0, 1, 2, 3, code="xid_48")
    registry.heartbeat(gpus=waiting, running_jobs=("old",))
    assert registry.node().status == "degraded"
    assert isinstance(registry.claim("new", gpu_count=1), NoAvailableNode)
    for _ in range(5):
        registry.pass_time(15)
        registry.heartbeat(gpus=waiting, running_jobs=("old",))
        assert registry.renew("old", claim.claim_id).claim_id == claim.claim_id
    registry.release("old", claim.claim_id)
    registry.heartbeats(3, gpus=reported())
    assert registry.node().status == "ready"
    assert len(granted(registry.claim("new", gpu_count=4))) == 4


def test_every_reason_that_waits_for_a_reset_keeps_new_jobs_away() -> None:
    for code in sorted(NO_NEW_JOBS):
        gpu = GpuState(uuid="GPU-0", name="H100", memory_mb=81_559, health="degraded", reasons=(code,))
        assert (gpu.is_sound, gpu.usable) == (True, False)


def test_the_node_explains_which_jobs_a_faulty_fabric_excludes() -> None:
    registry = ready(0, 1)
    account = registry.fleet.explain_node("node-1", registry.now)
    assert account is not None
    (found,) = [one for one in account.exclusions if one.reason == "gpu_unavailable"]
    assert found.refuses == (
        "jobs that need more than 2 GPUs, or GPUs other than NVIDIA H100, where they need several"
    )
    assert found.clears_when == "the fabric between its GPUs recovers"
    registry.heartbeat(gpus=reported(0, 1, 2, 3))
    account = registry.fleet.explain_node("node-1", registry.now)
    assert account is not None
    assert "jobs that need several GPUs, on this node or on several" in [
        one.refuses for one in account.exclusions
    ]
