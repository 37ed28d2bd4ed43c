"""Free GPU memory: what claims reserve and the node does not show yet is subtracted once."""

from dataclasses import replace

import pytest

from gpu_agent.registry.dispatch.candidate import ReservedMemory
from gpu_agent.registry.dispatch.gpu_allocation import free_mb, gpu_set, used_mb
from gpu_agent.registry.gpus import GpuState
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.heartbeat import Usage
from tests.registry.dispatch.nodes import (
    chosen,
    claimed,
    dispatching,
    gpu,
    gpus,
    job,
    node,
    refused,
    released,
    usage,
)


def test_memory_in_use_is_the_nodes_mean_where_it_reports_nothing_of_one_gpu() -> None:
    one = gpu("GPU-0", memory_mb=10_000, used_mb=None)
    assert used_mb(node(usage=usage(gpu_memory=30)), one) == 3000
    assert used_mb(node(usage=usage(gpu_memory=None)), one) == 0
    assert used_mb(node(usage=None), one) == 0


@pytest.mark.parametrize("percent", [1e308, -1e308, 100.5, -0.5])
def test_a_mean_that_is_no_percentage_is_no_mean(percent: float) -> None:
    reported = Usage(cpu_percent=5.0, mem_percent=5.0, gpu_mem_percent=percent)
    assert used_mb(node(usage=reported), gpu("GPU-0", memory_mb=10_000, used_mb=None)) == 0


def test_more_use_than_there_is_memory_leaves_nothing_free_and_no_debt() -> None:
    assert free_mb(node(), gpu("GPU-0", memory_mb=24_000, used_mb=2**53), {}) == 0
    assert free_mb(node(), gpu("GPU-0", memory_mb=24_000, used_mb=-5), {}) == 24_000


def test_unknown_memory_stays_unknown() -> None:
    assert free_mb(node(), gpu("GPU-0", memory_mb=None, used_mb=5), {}) is None


def test_a_promise_counts_until_the_node_shows_it() -> None:
    one, reserved = gpu("GPU-0", memory_mb=24_000, used_mb=2_000), ReservedMemory()
    reserved.add(10_000, 2_000, shown=False)
    free = []
    for one.memory_used_mb in (2_000, 8_000, 12_000, 15_000):
        free.append(free_mb(node(), one, {"GPU-0": reserved}))
    assert free == [12_000, 12_000, 12_000, 9_000]


def test_promises_on_one_gpu_add_up() -> None:
    reserved = ReservedMemory()
    reserved.add(10_000, 2_000, shown=False)
    reserved.add(5_000, 8_000, shown=False)
    assert reserved.unshown_mb(8_000) == 9_000
    reserved.remove(10_000)
    assert reserved.unshown_mb(8_000) == 0
    assert reserved.unshown_mb(2_000) == 5_000
    assert reserved.claims == 1


def test_never_more_than_all_needs_is_taken_off_when_others_leave_the_gpu() -> None:
    reserved = ReservedMemory()
    reserved.add(4_000, 20_000, shown=False)
    assert reserved.unshown_mb(0) == 4_000


def test_a_job_that_runs_already_is_not_counted_twice() -> None:
    reserved = ReservedMemory()
    reserved.add(10_000, 12_000, shown=True)
    assert reserved.unshown_mb(12_000) == 0


def test_what_is_promised_on_a_gpu_declared_no_more_is_taken_off_every_gpu() -> None:
    gone, held = ReservedMemory(), ReservedMemory()
    gone.add(10_000, 0, shown=False)
    held.add(5_000, 1_000, shown=False)
    record = node(gpus=gpus(gpu("#0", memory_mb=24_000, used_mb=1_000), gpu("#1", memory_mb=24_000)))
    reservations = {"GPU-0": gone, "#0": held}
    assert [free_mb(record, one, reservations) for one in record.gpus.values()] == [8_000, 14_000]


def test_memory_stays_promised_when_a_node_comes_back_without_the_uuids_of_its_gpus() -> None:
    record = node()
    dispatch = dispatching(record)
    claimed(dispatch, job("job-1", min_gpu_memory_mb=20_000))
    record.gpus = gpus(gpu("#0"))
    dispatch.update(record)
    assert refused(dispatch, job("job-2", min_gpu_memory_mb=20_000)) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    assert claimed(dispatch, job("job-3", min_gpu_memory_mb=4_000)).grants[0].gpu_uuids == ("#0",)
    released(dispatch, "job-1")
    assert claimed(dispatch, job("job-2", min_gpu_memory_mb=20_000)).grants[0].gpu_uuids == ("#0",)


def test_what_foreign_processes_use_is_not_free_and_comes_back_when_they_end() -> None:
    record = node(gpus=gpus(gpu("GPU-0", memory_mb=24_000, used_mb=15_000)))
    dispatch = dispatching(record)
    assert refused(dispatch, job(min_gpu_memory_mb=10_000)) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    record.gpus["GPU-0"].memory_used_mb = 2_000
    dispatch.update(record)
    claimed(dispatch, job(min_gpu_memory_mb=10_000))
    record.gpus["GPU-0"].memory_used_mb = 0
    dispatch.update(record)
    candidate = dispatch._index.candidates["node-A"]
    assert free_mb(record, record.gpus["GPU-0"], candidate.reserved) == 14_000


def test_memory_that_a_claim_needs_is_not_promised_twice() -> None:
    record = node(gpus=gpus(gpu("a"), gpu("b")))
    dispatch = dispatching(record)
    wanted = {"min_gpu_memory_mb": 16_000}
    places = [claimed(dispatch, job(f"job-{n}", **wanted)).grants[0].gpu_uuids for n in range(2)]
    assert sorted(places) == [("a",), ("b",)]
    assert refused(dispatch, job("job-3", **wanted)) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    released(dispatch, "job-0")
    assert chosen(dispatch, job("job-3", **wanted)).grants[0].gpu_uuids == places[0]


def test_memory_is_free_again_when_the_claim_on_it_ends() -> None:
    record = node()
    dispatch = dispatching(record)
    claimed(dispatch, job(min_gpu_memory_mb=20_000))
    record.gpus["GPU-0"].memory_used_mb = 1_500
    dispatch.update(record)
    assert refused(dispatch, job("job-2", min_gpu_memory_mb=20_000)) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    released(dispatch, "job-1")
    assert chosen(dispatch, job("job-2", min_gpu_memory_mb=20_000)).grants[0].node_id == "node-A"


def test_memory_that_the_node_shows_is_not_taken_off_twice() -> None:
    record = node()
    dispatch = dispatching(record)
    claimed(dispatch, job(min_gpu_memory_mb=10_000))
    record.gpus["GPU-0"].memory_used_mb = 10_000
    dispatch.update(record)
    assert chosen(dispatch, job("job-2", min_gpu_memory_mb=14_000)).grants[0].node_id == "node-A"


PARENT = GpuState(uuid="GPU-P", name="NVIDIA A100", memory_mb=40960, is_parent=True)
DEVICES = [
    GpuState(uuid=f"MIG-{n}", name="NVIDIA A100 MIG 3g.20gb", memory_mb=20096, parent_uuid="GPU-P")
    for n in (1, 2)
]


def test_a_gpu_set_counts_gpus_by_kind_whatever_the_case_of_their_names() -> None:
    states = (gpu("a", name="Tesla T4"), gpu("b", name="TESLA T4"), gpu("c", name="NVIDIA L4"))
    assert [(kind.name, number) for kind, number in gpu_set(states)] == [("nvidia l4", 1), ("tesla t4", 2)]


def test_a_gpu_that_is_lost_or_unknown_is_not_usable() -> None:
    healths = ("ok", "degraded", "lost", "unknown")
    record = node(gpus=gpus(*(gpu(health, health=health) for health in healths)))
    assert [one.uuid for one in record.gpus.usable_states()] == ["ok", "degraded"]


def test_the_parent_of_mig_devices_takes_no_job_and_its_health_counts_for_them() -> None:
    record = node(gpus=gpus(PARENT, *DEVICES))
    assert [one.uuid for one in record.gpus.usable_states()] == ["MIG-1", "MIG-2"]
    record = node(gpus=gpus(replace(PARENT, health="lost"), *DEVICES))
    assert record.gpus.usable_states() == []
