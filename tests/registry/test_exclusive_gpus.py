"""Exclusive and shared GPUs: no GPU in two exclusive claims, none in an exclusive and a shared one (§5.1)."""
# ruff: noqa: ANN401 - parts of requests and heartbeats are passed through as they are

from collections.abc import Sequence
from typing import Any

import pytest

from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import GpuCordonRequested
from gpu_agent.registry.job import Claim, Job
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.messages import GpuDeclaration, GpuFigures, Hardware
from tests.registry.harness import Registry, answer, figures, hardware, logged


def ready(count: int = 1) -> Registry:
    registry = Registry()
    join(registry, hardware(count).gpus, figures(count), max_concurrent_jobs=16)
    return registry


def join(
    registry: Registry,
    gpus: Sequence[GpuDeclaration],
    reported: tuple[GpuFigures, ...] | None = None,
    connection: int = 1,
    **parts: Any,
) -> None:
    """Bring a node with these GPUs up to ready."""
    machine = Hardware(cpu_cores=8, memory_gb=64, gpus=tuple(gpus))
    registry.register(connection, hardware=machine, **parts)
    registry.heartbeats(3, connection, gpus=reported)
    assert registry.node(f"node-{connection}").status == "ready"


def refusal(answered: object) -> tuple[list[ExclusionReason], str]:
    assert isinstance(answered, NoAvailableNode), answered
    (examples,) = answered.examples.values()
    return list(answered.counts), examples[0].have


def test_four_claims_of_one_gpu_on_a_node_with_one_get_it_once() -> None:
    registry = ready()
    answers = [registry.claim(f"job-{place}", gpu_count=1) for place in range(4)]
    assert [isinstance(one, Claim) for one in answers] == [True, False, False, False]
    reasons, have = refusal(answers[1])
    assert reasons == [ExclusionReason.CAPACITY_EXCEEDED]
    assert have == "0 free of 1; claimed by job-0"


def test_exclusive_claims_get_different_gpus_until_none_is_left() -> None:
    registry = ready(4)
    claims = [registry.claim(f"job-{place}", gpu_count=2) for place in range(2)]
    assert sorted(uuid for one in claims for uuid in one.grants[0].gpu_uuids) == [
        f"GPU-{n}" for n in range(4)
    ]
    assert isinstance(registry.claim("job-3", gpu_count=1), NoAvailableNode)
    registry.release("job-0", claims[0].claim_id)
    assert registry.claim("job-3", gpu_count=2).grants[0].gpu_uuids == claims[0].grants[0].gpu_uuids


def test_a_shared_gpu_is_not_given_out_exclusively_nor_the_other_way_round() -> None:
    registry = ready(2)
    shared = registry.claim("shared", min_gpu_memory_mb=20_000)
    exclusive = registry.claim("exclusive", gpu_count=1)
    assert shared.grants[0].gpu_uuids != exclusive.grants[0].gpu_uuids
    assert isinstance(registry.claim("another", gpu_count=1), NoAvailableNode)
    again = registry.claim("beside", gpu_sharing="memory", min_gpu_memory_mb=20_000)
    assert again.grants[0].gpu_uuids == shared.grants[0].gpu_uuids
    assert isinstance(registry.claim("too much", min_gpu_memory_mb=60_000), NoAvailableNode)


def test_a_slot_needs_one_gpu_that_no_exclusive_claim_holds() -> None:
    registry = ready()
    claim = registry.claim("exclusive", gpu_count=1)
    reasons, have = refusal(registry.claim("slot"))
    assert (reasons, have) == ([ExclusionReason.CAPACITY_EXCEEDED], "0 free of 1; claimed by exclusive")
    registry.release("exclusive", claim.claim_id)
    assert registry.claim("slot").grants[0].gpu_uuids == ()


def test_beside_a_slot_one_gpu_is_not_given_out_exclusively() -> None:
    registry = ready(2)
    registry.claim("slot")
    assert isinstance(registry.claim("one", gpu_count=1), Claim)
    reasons, have = refusal(registry.claim("two", gpu_count=1))
    assert reasons == [ExclusionReason.CAPACITY_EXCEEDED]
    assert have == "0 free of 2; left to jobs without GPUs of their own, claimed by one"


def test_the_gpu_that_the_worker_of_a_slot_uses_is_the_one_left_to_it() -> None:
    registry = ready(2)
    registry.claim("slot")
    busy = (figures(2)[0], figures(2)[1].model_copy(update={"processes": 1}))
    registry.heartbeats(1, every=15.0, gpus=busy, running_jobs=("slot",))
    assert registry.claim("one", gpu_count=1).grants[0].gpu_uuids == ("GPU-0",)


def test_beside_a_reported_job_without_a_claim_one_gpu_is_not_given_out_exclusively() -> None:
    registry = ready()
    registry.heartbeats(1, every=15.0, running_jobs=("stray",))
    reasons, have = refusal(registry.claim("job", gpu_count=1))
    assert reasons == [ExclusionReason.CAPACITY_EXCEEDED]
    assert have == "0 free of 1; left to jobs without GPUs of their own"
    registry.heartbeats(1, every=15.0, running_jobs=())
    assert isinstance(registry.claim("job", gpu_count=1), Claim)


def test_a_gang_that_shares_memory_counts_no_eligible_node_as_excluded() -> None:
    registry = ready()
    refused = registry.claim("gang", min_gpu_memory_mb=20_000, nodes=2)
    assert isinstance(refused, NoAvailableNode)
    assert refused.counts == {}


def test_a_gpu_in_use_without_a_claim_is_not_given_out_exclusively() -> None:
    registry = ready()
    registry.heartbeats(1, every=15.0, gpus=figures(processes=2))
    _, have = refusal(registry.claim("job", gpu_count=1))
    assert have == "0 free of 1; in use without a claim: 2 processes"
    registry.heartbeats(1, every=15.0, gpus=figures(processes=0))
    assert isinstance(registry.claim("job", gpu_count=1), Claim)


def test_processes_of_a_released_claim_count_only_in_readings_made_after_its_end() -> None:
    registry = ready()
    claim = registry.claim("first", gpu_count=1)
    registry.heartbeats(1, every=15.0, gpus=figures(processes=1), running_jobs=("first",))
    registry.release("first", claim.claim_id)
    second = registry.claim("second", gpu_count=1)
    assert isinstance(second, Claim)
    registry.release("second", second.claim_id)
    registry.heartbeats(1, every=15.0, gpus=figures(processes=1))
    assert isinstance(registry.claim("third", gpu_count=1), NoAvailableNode)


def test_a_gpu_whose_memory_is_unknown_or_zero_is_not_given_out_exclusively() -> None:
    registry = Registry()
    gpus = (
        GpuDeclaration(name="H100", memory_gb=None, uuid="GPU-0"),
        GpuDeclaration(name="H100", memory_gb=0, uuid="GPU-1"),
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-2"),
    )
    join(registry, gpus, figures(3))
    assert registry.claim("one", gpu_count=1).grants[0].gpu_uuids == ("GPU-2",)
    assert isinstance(registry.claim("two", gpu_count=2), NoAvailableNode)


def test_total_memory_and_compute_capability_are_demands_of_each_gpu() -> None:
    registry = Registry()
    gpus = (
        GpuDeclaration(name="A100", memory_gb=40, uuid="GPU-0", compute_capability="8.0"),
        GpuDeclaration(name="H100", memory_gb=80, uuid="GPU-1", compute_capability="9.0"),
    )
    join(registry, gpus, figures(2))
    large = registry.claim("large", gpu_count=1, min_gpu_memory_mb=60_000)
    assert large.grants[0].gpu_uuids == ("GPU-1",)
    answered = registry.claim("new", gpu_count=2, min_compute_capability="8.6")
    reasons, _ = refusal(answered)
    assert reasons == [ExclusionReason.GPU_UNAVAILABLE]
    assert registry.claim("old", gpu_count=1, min_compute_capability="8.0").grants[0].gpu_uuids == ("GPU-0",)


MIG = (
    GpuDeclaration(name="NVIDIA H100", memory_gb=80, uuid="GPU-P"),
    GpuDeclaration(name="NVIDIA H100 MIG 3g.40gb", memory_gb=40, uuid="MIG-1", parent_uuid="GPU-P"),
    GpuDeclaration(name="NVIDIA H100 MIG 3g.40gb", memory_gb=40, uuid="MIG-2", parent_uuid="GPU-P"),
    GpuDeclaration(name="NVIDIA H100", memory_gb=80, uuid="GPU-W"),
)


def test_a_claim_gets_whole_gpus_or_mig_devices_never_both() -> None:
    registry = Registry()
    join(registry, MIG, max_concurrent_jobs=9)
    assert isinstance(registry.claim("three", gpu_count=3), NoAvailableNode)
    assert registry.claim("two", gpu_count=2).grants[0].gpu_uuids == ("MIG-1", "MIG-2")
    assert registry.claim("whole", gpu_count=1, gpu_name="h100").grants[0].gpu_uuids == ("GPU-W",)
    assert isinstance(registry.claim("more", gpu_count=1, gpu_name="H100"), NoAvailableNode)


def test_a_cordoned_gpu_is_claimed_by_no_one_and_says_who_and_why_also_after_registering_again() -> None:
    registry = ready(2)
    registry.do(GpuCordonRequested(registry.ref(), "node-1", "GPU-0", "ECC errors", by="ada"))
    assert isinstance(registry.claim("two", gpu_count=2), NoAvailableNode)
    registry.come_back(7, hardware=hardware(2), max_concurrent_jobs=16)
    registry.heartbeats(3, 7, node_id="node-1", gpus=figures(2))
    _, have = refusal(registry.claim("two", gpu_count=2))
    assert have == "1 free of 2; cordoned by ada: ECC errors"
    (one,) = logged(registry.done, "gpu_cordoned")
    assert one.fields["gpu_uuid"] == "GPU-0"
    registry.do(GpuCordonRequested(registry.ref(), "node-1", "GPU-0", None))
    assert isinstance(registry.claim("two", gpu_count=2), Claim)


@pytest.mark.parametrize(("uuid", "said"), [("GPU-9", "declares no GPU"), ("#0", "cannot be cordoned")])
def test_a_gpu_that_is_not_declared_or_has_no_uuid_cannot_be_cordoned(uuid: str, said: str) -> None:
    registry = ready()
    refused = answer(registry.do(GpuCordonRequested(registry.ref(), "node-1", uuid, "x")))
    assert refused.code == "UNKNOWN_GPU"
    assert said in refused.message


def test_exclusive_claims_fill_a_node_before_they_begin_another() -> None:
    registry = Registry()
    for connection in (1, 2, 3):
        gpus = tuple(
            GpuDeclaration(name="H100", memory_gb=80, uuid=f"GPU-{connection}-{place}") for place in range(4)
        )
        join(registry, gpus, connection=connection)
    first = registry.claim("job-0", gpu_count=1).grants[0].node_id
    assert {registry.claim(f"job-{place}", gpu_count=1).grants[0].node_id for place in (1, 2, 3)} == {first}


def test_a_node_without_a_stated_number_of_slots_has_one_for_each_usable_gpu() -> None:
    registry = Registry()
    registry.register(hardware=hardware(8))
    registry.heartbeats(3, gpus=figures(8))
    assert registry.node().slots == 8
    registry.heartbeats(1, gpus=figures(2))
    assert registry.node().slots == 4


def test_a_gpu_is_one_gpu_on_two_nodes_and_the_one_that_registered_last_gives_it_out() -> None:
    registry = Registry()
    registry.ready(1, hardware=hardware(1))
    registry.pass_time(1.0)
    registry.ready(2, hardware=hardware(1))
    assert registry.node("node-1").duplicate_gpus == registry.node("node-2").duplicate_gpus == {"GPU-0"}
    registry.heartbeats(1, 1)
    claim = registry.claim("job", gpu_count=1)
    assert claim.grants[0].node_id == "node-2"
    answered = registry.claim("other", gpu_count=1)
    assert isinstance(answered, NoAvailableNode)
    assert sorted(one.have for one in answered.examples[ExclusionReason.CAPACITY_EXCEEDED]) == [
        "0 free of 1; claimed by job",
        "0 free of 1; claimed by job on node node-2",
    ]


def test_a_claim_on_one_node_keeps_the_gpu_from_the_node_that_registers_later() -> None:
    registry = Registry()
    registry.ready(1, hardware=hardware(1))
    claim = registry.claim("job", gpu_count=1)
    registry.ready(2, hardware=hardware(1))
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)
    registry.release("job", claim.claim_id)
    registry.heartbeats(1, 1)
    assert registry.claim("other", gpu_count=1).grants[0].node_id == "node-2"


def test_a_node_without_uuids_that_declares_another_list_gives_no_gpu_out_until_earlier_claims_end() -> None:
    registry = Registry()
    nameless = (GpuDeclaration(name="H100", memory_gb=80), GpuDeclaration(name="H100", memory_gb=80))
    join(registry, nameless)
    claim = registry.claim("job", gpu_count=1)
    assert (claim.grants[0].gpu_uuids, claim.grants[0].gpu_indices) == (("#0",), (0,))
    other = (*nameless, GpuDeclaration(name="L4", memory_gb=24))
    registry.heartbeats(1, gpus=None, hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=other))
    _, have = refusal(registry.claim("next", gpu_count=1))
    assert have == "0 free of 3; claimed by job, 2 claims of an earlier list of GPUs have not ended"
    registry.release("job", claim.claim_id)
    registry.heartbeats(1, gpus=None)
    assert isinstance(registry.claim("next", gpu_count=1), Claim)


def test_contradicting_demands_are_refused_with_the_next_step() -> None:
    with pytest.raises(ValueError, match="needs min_gpu_memory_mb: state how much"):
        Job(job_id="x", gpu_sharing="memory", gpu_count=1)
    with pytest.raises(ValueError, match="needs gpu_count: state how many"):
        Job(job_id="x", gpu_sharing="exclusive")
