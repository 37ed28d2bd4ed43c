"""What each GPU is for jobs: a GPU that is called free is granted to a claim of one GPU, any other is not."""
# ruff: noqa: ANN401 - facts of any type are passed through as they are

from random import Random
from typing import Any

import pytest

from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.gpu_status import gpu_statuses
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import GpuCordon, NodeRecord, ReportedJobs
from gpu_agent.wire.codes import GpuStatus, NodeStatus
from tests.registry.dispatch.model_check import ModelCheck
from tests.registry.dispatch.nodes import candidate_of, claimed, dispatching, gpu, gpus, job, node, usage
from tests.registry.test_claims_at_random import World

FREE = GpuStatus.FREE


def never(_job_id: str) -> bool:
    return False


def statuses(record: NodeRecord) -> tuple[GpuStatus, ...]:
    return gpu_statuses(candidate_of(record), never)


def two_gpus(**facts: Any) -> NodeRecord:
    return node(gpus=gpus(gpu("GPU-0", **facts), gpu("GPU-1")), max_concurrent_jobs=4)


def test_gpus_of_a_ready_idle_node_are_free() -> None:
    assert statuses(two_gpus()) == (FREE, FREE)


@pytest.mark.parametrize(("health", "status"), [("lost", "lost"), ("unknown", "unknown"), ("odd", "unknown")])
def test_a_gpu_that_is_not_usable_is_lost_or_unknown_whatever_else_it_is(health: str, status: str) -> None:
    record = two_gpus(health=health)
    record.desired.gpu_cordons["GPU-0"] = GpuCordon(reason="ECC errors")
    assert statuses(record) == (status, FREE)


def test_a_degraded_gpu_that_takes_jobs_is_free() -> None:
    assert statuses(two_gpus(health="degraded", reasons=("hw_slowdown",))) == (FREE, FREE)


def test_a_degraded_gpu_that_waits_for_a_reset_is_not_schedulable() -> None:
    assert statuses(two_gpus(health="degraded", reasons=("xid_48",))) == (GpuStatus.NOT_SCHEDULABLE, FREE)


def test_processes_without_a_claim_are_use_without_a_claim() -> None:
    record = two_gpus(processes=3)
    record.liveness.last_heartbeat_at = 0.0
    assert statuses(record) == (GpuStatus.USED_WITHOUT_CLAIM, FREE)


def test_a_cordoned_gpu_is_not_schedulable() -> None:
    record = two_gpus()
    record.desired.gpu_cordons["GPU-1"] = GpuCordon(reason="ECC errors")
    assert statuses(record) == (FREE, GpuStatus.NOT_SCHEDULABLE)


@pytest.mark.parametrize(
    "facts",
    [
        {"status": NodeStatus.DRAINING},
        {"connection": None},
        {"cordoned": "broken fan"},
        {"max_concurrent_jobs": 0},
        {"usage": usage(cpu=99)},
    ],
    ids=lambda facts: next(iter(facts)),
)
def test_no_gpu_is_free_on_a_node_that_takes_no_job(facts: dict[str, Any]) -> None:
    assert statuses(node(**facts)) == (GpuStatus.NOT_SCHEDULABLE,)


def test_a_gpu_whose_memory_is_unknown_is_not_schedulable() -> None:
    record = node(gpus=gpus(gpu("GPU-0", memory_mb=None)))
    assert statuses(record) == (GpuStatus.NOT_SCHEDULABLE,)


def test_a_claimed_gpu_is_claimed_and_idle_once_its_claim_is() -> None:
    record = two_gpus()
    dispatch = dispatching(record)
    claimed(dispatch, job(gpu_count=1))
    assert sorted(dispatch.gpu_statuses("node-A", never)) == ["claimed", "free"]
    assert sorted(dispatch.gpu_statuses("node-A", {"job-1"}.__contains__)) == ["free", "idle"]


def test_a_shared_gpu_is_idle_once_all_of_its_claims_are() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=4))
    claimed(dispatch, job("job-1", min_gpu_memory_mb=1000))
    claimed(dispatch, job("job-2", min_gpu_memory_mb=1000))
    assert dispatch.gpu_statuses("node-A", {"job-1"}.__contains__) == ("claimed",)
    assert dispatch.gpu_statuses("node-A", {"job-1", "job-2"}.__contains__) == ("idle",)


def test_a_claim_without_gpus_of_its_own_takes_one_gpu() -> None:
    dispatch = dispatching(two_gpus())
    claimed(dispatch, job())
    assert sorted(dispatch.gpu_statuses("node-A", never)) == ["claimed", "free"]


def test_a_job_without_a_claim_uses_one_gpu() -> None:
    record = two_gpus()
    record.jobs = ReportedJobs.of(("foreign",), 1)
    assert sorted(statuses(record)) == ["free", "used_without_claim"]


def test_the_parent_of_mig_devices_has_no_status() -> None:
    states = (
        gpu("GPU-0", is_parent=True),
        gpu("MIG-0", parent_uuid="GPU-0", name="NVIDIA L4 MIG 1g.6gb"),
        gpu("GPU-1"),
    )
    assert statuses(node(gpus=gpus(*states))) == (FREE, FREE)


def test_a_free_gpu_is_granted_and_no_other_one() -> None:
    granted = 0
    for seed in range(12):
        check = ModelCheck(Random(seed))  # noqa: S311 - the same events for the same seed
        for _ in range(40):
            check.step()
            check.job_ends()
            check.node_changes()
            granted += sum(check_each_gpu(check, record) for record in check.records.values())
    assert granted > 500


def check_each_gpu(check: ModelCheck, record: NodeRecord) -> int:
    """Compare each status with what dispatch does while all other GPUs of the node are cordoned."""
    dispatch, cordons = check.dispatch, record.desired.gpu_cordons
    candidate = dispatch._index.candidates[record.node_id]
    known = dispatch.gpu_statuses(record.node_id, never)
    own = [one for one in record.gpus.values() if not one.is_parent]
    assert len(known) == len(own)
    if candidate.slot_only or candidate.has_foreign_jobs:  # a cordon would move their worker
        assert (FREE in known) == any(grants(check, record, one) for one in own)
        return known.count(FREE)
    before = dict(cordons)
    for state, status in zip(own, known, strict=True):
        for other in own:
            if other is not state and other.uuid != state.parent_uuid:
                cordons.setdefault(other.uuid, GpuCordon(reason="test"))
        dispatch.update_cordons(record)
        assert grants(check, record, state) == (status is FREE), (state, status)
        record.desired.gpu_cordons.clear()
        cordons.update(before)
        dispatch.update_cordons(record)
    return known.count(FREE)


def grants(check: ModelCheck, record: NodeRecord, gpu: GpuState) -> bool:
    """Whether dispatch would give a job a GPU of this name on the node."""
    wanted = Job(job_id="probe", gpu_count=1, gpu_name=gpu.name, allowed_nodes=(record.node_id,))
    return isinstance(check.dispatch.select(wanted, check.now), Choice)


@pytest.mark.parametrize("seed", range(8))
def test_a_node_with_a_free_gpu_gets_a_claim_whatever_waits_and_happens(seed: int) -> None:
    world = World(seed)
    free = 0
    for _ in range(150):
        world.step()
        fleet = world.registry.fleet
        for record in fleet.nodes():
            has_free = FREE in fleet.gpu_statuses(record.node_id)
            wanted = Job(job_id="probe", gpu_count=1, allowed_nodes=(record.node_id,))
            assert isinstance(fleet.select(wanted, world.registry.now), Choice) == has_free
            free += has_free
    assert free > 20
