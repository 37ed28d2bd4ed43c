"""A claim's life: who may act on it, how it ends, and what stays held afterwards (§5.3)."""
# ruff: noqa: ANN401 - parts of requests and heartbeats are passed through as they are

from typing import Any

import pytest

from gpu_agent.registry.actions import DocumentKind, Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import RemovalRequested
from gpu_agent.registry.job import Claim
from gpu_agent.wire.messages import GpuDeclaration, Hardware
from tests.registry.harness import (
    Registry,
    figures,
    hardware,
    logged,
    proof,
    unregistration,
)


def one_gpu(**thresholds: Any) -> Registry:
    registry = Registry(**thresholds)
    registry.ready()
    return registry


def code(answered: object) -> str:
    assert isinstance(answered, Refusal), answered
    return answered.code


def test_the_same_job_with_the_same_demands_gets_and_renews_the_same_claim() -> None:
    registry = one_gpu()
    first = registry.claim("job", by="ada", gpu_count=1, required_features=(), priority=3)
    registry.pass_time(10.0)
    again = registry.claim("job", by="ada", gpu_count=1, priority=5, affinity_key="x")
    assert again.claim_id == first.claim_id
    assert again.expires_at == first.expires_at + 10.0


def test_the_order_of_a_list_and_a_stated_default_are_the_same_demands() -> None:
    registry = Registry()
    registry.ready(labels={"zone": "a"})
    first = registry.claim("job", gpu_count=1, labels={"zone": ("a", "b")}, allowed_nodes=("node-1", "x"))
    again = registry.claim(
        "job",
        gpu_count=1,
        gpu_sharing="exclusive",
        min_gpu_memory_mb=0,
        labels={"zone": ("b", "a")},
        allowed_nodes=("x", "node-1"),
    )
    assert again.claim_id == first.claim_id


def test_the_same_job_id_with_other_demands_is_in_use_and_its_owner_learns_the_difference() -> None:
    registry = one_gpu()
    registry.claim("job", by="ada", gpu_count=1)
    mine = registry.claim("job", by="ada", gpu_count=2)
    assert code(mine) == "JOB_ID_IN_USE"
    assert "gpu_count is 1, not 2" in mine.message
    theirs = registry.claim("job", by="bob", gpu_count=1)
    assert code(theirs) == "JOB_ID_IN_USE"
    assert "gpu_count" not in theirs.message


def test_another_owner_may_neither_renew_nor_release_but_an_admin_may() -> None:
    registry = one_gpu()
    claim = registry.claim("job", by="ada", gpu_count=1)
    assert code(registry.renew("job", claim.claim_id, by="bob")) == "NOT_CLAIM_OWNER"
    assert code(registry.release("job", by="bob")) == "NOT_CLAIM_OWNER"
    assert registry.fleet.claim_of("job") == claim
    assert registry.release("job", by="root", is_admin=True) is None
    assert registry.fleet.claim_of("job") is None


def test_a_superseded_claim_id_changes_nothing() -> None:
    registry = one_gpu()
    old = registry.claim("job", gpu_count=1)
    registry.release("job", old.claim_id)
    new = registry.claim("job", gpu_count=1)
    assert code(registry.release("job", old.claim_id)) == "CLAIM_SUPERSEDED"
    assert code(registry.renew("job", old.claim_id)) == "CLAIM_SUPERSEDED"
    assert registry.fleet.claim_of("job") == new


def test_a_late_release_after_expiry_frees_no_other_jobs_slot() -> None:
    registry = one_gpu()
    old = registry.claim("job", gpu_count=1)
    registry.heartbeats(5, every=15.0, gpus=figures(processes=0))
    assert code(registry.release("job", old.claim_id)) == "CLAIM_NOT_FOUND"
    new = registry.claim("job", gpu_count=1)
    assert code(registry.release("job", old.claim_id)) == "CLAIM_SUPERSEDED"
    assert registry.fleet.claim_of("job") == new


def test_without_any_claim_there_is_nothing_to_renew_or_release() -> None:
    registry = one_gpu()
    assert code(registry.renew("job")) == "CLAIM_NOT_FOUND"
    assert code(registry.release("job", "claim-9")) == "CLAIM_NOT_FOUND"


def test_a_claim_has_the_ttl_that_it_asks_for_and_a_renewal_may_change_it() -> None:
    registry = one_gpu()
    claim = registry.claim("job", gpu_count=1, ttl_seconds=300.0)
    assert claim.expires_at == registry.now + 300.0
    assert registry.renew("job", claim.claim_id).expires_at == registry.now + 300.0
    stored = len(registry.stored)
    assert registry.renew("job", claim.claim_id, ttl_seconds=30.0).expires_at == registry.now + 30.0
    assert len(registry.stored) > stored
    stored = len(registry.stored)
    assert registry.renew("job", claim.claim_id).expires_at == registry.now + 30.0
    assert len(registry.stored) == stored


def expire(registry: Registry) -> Claim:
    """Let the claim of a job on node-1 expire while the job goes on."""
    claim = registry.claim("job", by="ada", gpu_count=1, ttl_seconds=10.0)
    registry.heartbeats(1, every=15.0, gpus=figures(processes=1), running_jobs=("job",))
    assert registry.fleet.claim_of("job") is None
    assert isinstance(claim, Claim)
    return claim


def test_after_an_expiry_the_gpu_stays_held_while_the_job_is_seen() -> None:
    registry = one_gpu()
    expire(registry)
    registry.heartbeats(4, every=15.0, gpus=figures(processes=1), running_jobs=("job",))
    refused = registry.claim("other", by="bob", gpu_count=1)
    assert isinstance(refused, NoAvailableNode)
    ((one,),) = refused.examples.values()
    assert one.have == "0 free of 1; held: job job may still run there"
    registry.heartbeats(1, every=15.0, gpus=figures(processes=1), running_jobs=())
    assert isinstance(registry.claim("other", by="bob", gpu_count=1), NoAvailableNode)
    registry.heartbeats(1, every=15.0, gpus=figures(processes=0), running_jobs=())
    assert isinstance(registry.claim("other", by="bob", gpu_count=1), Claim)
    (freed,) = logged(registry.done, "held_gpus_freed")
    assert freed.fields["job_id"] == "job"


def test_a_reading_made_before_the_end_frees_nothing() -> None:
    registry = one_gpu()
    registry.claim("job", gpu_count=1, ttl_seconds=10.0)
    registry.pass_time(10.0)
    stale: dict[str, Any] = {"gpus": figures(processes=0), "running_jobs": (), "probe_age_seconds": 30.0}
    registry.heartbeats(1, every=15.0, **stale)
    assert registry.node().held
    registry.heartbeats(1, every=16.0, **stale)
    assert not registry.node().held


def test_releasing_the_ended_claim_by_its_id_frees_its_gpus_at_once() -> None:
    registry = one_gpu()
    claim = expire(registry)
    assert code(registry.release("job", claim.claim_id, by="bob")) == "NOT_CLAIM_OWNER"
    assert registry.release("job", claim.claim_id, by="ada") is None
    registry.heartbeats(1, every=15.0, gpus=figures(processes=0), running_jobs=())
    assert isinstance(registry.claim("other", gpu_count=1), Claim)


def test_the_job_itself_may_claim_what_is_held_for_it() -> None:
    registry = one_gpu()
    old = expire(registry)
    assert isinstance(registry.claim("job", by="bob", gpu_count=1), NoAvailableNode)
    new = registry.claim("job", by="ada", gpu_count=1)
    assert isinstance(new, Claim)
    assert new.claim_id != old.claim_id
    assert not registry.node().held


def expire_shared(registry: Registry, **figured: Any) -> Claim:
    """Let a claim of 60 000 MiB expire on a GPU of 81 920, on which its job goes on and uses them."""
    claim = registry.claim("job", by="ada", min_gpu_memory_mb=60_000, ttl_seconds=10.0)
    seen: dict[str, Any] = {"gpus": figures(processes=1, memory_used_mb=61_000), "running_jobs": ("job",)}
    registry.heartbeats(1, every=15.0, **(seen | figured))
    assert registry.fleet.claim_of("job") is None
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.parametrize("running", [("job",), None])
def test_the_job_itself_may_claim_the_memory_that_is_held_for_it(running: tuple[str, ...] | None) -> None:
    registry = one_gpu()
    old = expire_shared(registry, running_jobs=running)
    assert isinstance(registry.claim("job", by="bob", min_gpu_memory_mb=60_000), NoAvailableNode)
    assert isinstance(registry.claim("other", by="ada", min_gpu_memory_mb=60_000), NoAvailableNode)
    new = registry.claim("job", by="ada", min_gpu_memory_mb=60_000)
    assert isinstance(new, Claim)
    assert new.claim_id != old.claim_id
    assert not registry.node().held
    assert isinstance(registry.claim("small", min_gpu_memory_mb=20_000), Claim)
    assert isinstance(registry.claim("large", min_gpu_memory_mb=30_000), NoAvailableNode)


def test_memory_that_a_job_has_not_used_yet_is_reserved_for_its_new_claim() -> None:
    registry = one_gpu()
    expire_shared(registry, gpus=figures(processes=1, memory_used_mb=11_000))
    assert isinstance(registry.claim("job", by="ada", min_gpu_memory_mb=60_000), Claim)
    assert isinstance(registry.claim("other", min_gpu_memory_mb=30_000), NoAvailableNode)


def test_memory_that_others_use_is_not_given_to_a_job_that_its_node_reports_no_more() -> None:
    registry = one_gpu()
    expire_shared(registry, running_jobs=())
    assert registry.node().held
    assert isinstance(registry.claim("job", by="ada", min_gpu_memory_mb=60_000), NoAvailableNode)


@pytest.mark.parametrize("exclusive_first", [True, False])
def test_the_job_itself_may_use_what_is_held_for_it_in_another_way(*, exclusive_first: bool) -> None:
    registry = one_gpu()
    demands: list[dict[str, Any]] = [{"min_gpu_memory_mb": 60_000}, {"gpu_count": 1}]
    first, second = reversed(demands) if exclusive_first else demands
    registry.claim("job", ttl_seconds=10.0, **first)
    registry.heartbeats(1, every=15.0, gpus=figures(processes=1), running_jobs=("job",))
    assert registry.node().held
    assert isinstance(registry.claim("job", **second), Claim)
    assert not registry.node().held
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)
    assert isinstance(registry.claim("other", min_gpu_memory_mb=60_000), NoAvailableNode)


def test_what_is_held_outlives_a_restart() -> None:
    registry = one_gpu()
    expire(registry)
    later = Registry()
    later.now = registry.now
    later.restore(registry.stored_documents())
    assert [one.claim.job_id for one in later.fleet.held()] == ["job"]
    later.come_back(9)
    later.heartbeats(3, 9, node_id="node-1", running_jobs=("job",), gpus=figures(processes=1))
    assert isinstance(later.claim("other", gpu_count=1), NoAvailableNode)
    later.heartbeats(3, 9, node_id="node-1", every=15.0, running_jobs=(), gpus=figures(processes=0))
    assert isinstance(later.claim("other", gpu_count=1), Claim)


def test_a_node_that_reports_neither_jobs_nor_processes_holds_for_one_ttl_of_connected_time() -> None:
    registry = one_gpu(claim_ttl_seconds=60.0)
    registry.claim("job", gpu_count=1, ttl_seconds=10.0)
    silent: dict[str, Any] = {"running_jobs": None}
    registry.heartbeats(1, every=15.0, **silent)
    registry.heartbeats(3, every=15.0, **silent)
    assert registry.node().held
    registry.heartbeats(1, every=15.0, **silent)
    assert not registry.node().held


def lose(registry: Registry) -> Claim:
    claim = registry.claim("job", gpu_count=1)
    registry.do(unregistration())
    (lost,) = logged(registry.done, "claim_lost")
    assert lost.fields["claim_id"] == claim.claim_id
    assert isinstance(claim, Claim)
    return claim


def test_a_lost_claim_is_attached_again_with_its_id_when_its_job_is_reported() -> None:
    registry = one_gpu()
    claim = lose(registry)
    registry.come_back(5)
    registry.heartbeats(1, 5, node_id="node-1", running_jobs=("job",), gpus=figures(processes=1))
    attached = registry.fleet.claim_of("job")
    assert attached is not None
    assert attached.claim_id == claim.claim_id
    assert not registry.node().held
    assert registry.renew("job", claim.claim_id).claim_id == claim.claim_id


def test_an_expired_claim_is_not_attached_again() -> None:
    registry = one_gpu()
    expire(registry)
    assert registry.fleet.claim_of("job") is None
    assert registry.node().held


def test_removing_the_node_ends_what_is_held_there() -> None:
    registry = one_gpu()
    expire(registry)
    registry.do(RemovalRequested(registry.ref(), "node-1"))
    assert registry.fleet.held() == []
    assert not [name for name in registry.document_names if "/" in name]


def test_a_job_without_a_claim_is_reported_once() -> None:
    registry = one_gpu()
    registry.heartbeats(3, every=15.0, running_jobs=("stray",))
    assert [one.fields["job_id"] for one in logged(registry.done, "job_running_without_claim")] == ["stray"]


def test_a_claimed_gpu_that_fails_is_reported_once_and_the_claim_stays() -> None:
    registry = one_gpu()
    claim = registry.claim("job", gpu_count=1)
    registry.heartbeats(
        3, every=15.0, gpus=figures(health="failed", reasons=("xid_79",)), running_jobs=("job",)
    )
    (one,) = logged(registry.done, "claim_gpu_unusable")
    assert (one.fields["gpu_uuid"], one.fields["health"]) == ("GPU-0", "failed")
    assert registry.fleet.claim_of("job") is not None
    assert claim.claim_id == one.fields["claim_id"]


def fleet_of(count: int, gpus_each: int = 1, **declaring: Any) -> Registry:
    registry = Registry()
    for connection in range(1, count + 1):
        declared = tuple(
            gpu.model_copy(update={"uuid": f"GPU-{connection}-{place}"})
            for place, gpu in enumerate(hardware(gpus_each).gpus)
        )
        registry.register(connection, hardware=hardware(1).model_copy(update={"gpus": declared}), **declaring)
        registry.heartbeats(3, connection, gpus=None)
    for connection in range(1, count + 1):
        registry.heartbeat(connection, gpus=None)
    return registry


def test_a_gang_claims_different_nodes_all_or_none() -> None:
    registry = fleet_of(3)
    assert isinstance(registry.claim("too many", gpu_count=1, nodes=4), NoAvailableNode)
    claim = registry.claim("gang", gpu_count=1, nodes=3)
    assert sorted(grant.node_id for grant in claim.grants) == ["node-1", "node-2", "node-3"]
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)
    registry.release("gang", claim.claim_id)
    assert len(registry.claim("again", gpu_count=1, nodes=3).grants) == 3


def test_a_claim_that_is_refused_for_its_size_leaves_what_is_held_for_its_job() -> None:
    registry = fleet_of(3, endpoint="é" * 4096)
    registry.claim("job", by="ada", gpu_count=1, nodes=3, ttl_seconds=10.0)
    for connection in (1, 2, 3):
        registry.heartbeats(1, connection, every=5.0, gpus=None, running_jobs=("job",))
    names = tuple(f"{number:01000}" for number in range(350))
    refused = registry.claim("job", by="ada", gpu_count=1, nodes=3, excluded_nodes=names)
    assert code(refused) == "INVALID_MESSAGE"
    assert len(registry.fleet.held_of("job")) == 3
    assert isinstance(registry.claim("other", gpu_count=1), NoAvailableNode)


def test_a_gang_that_cannot_be_whole_takes_nothing() -> None:
    registry = fleet_of(3)
    registry.claim("one", gpu_count=1)
    assert isinstance(registry.claim("gang", gpu_count=1, nodes=3), NoAvailableNode)
    assert isinstance(registry.claim("two", gpu_count=1, nodes=2), Claim)


def test_a_gang_is_lost_as_a_whole_and_never_attached_again() -> None:
    registry = fleet_of(2)
    claim = registry.claim("gang", gpu_count=1, nodes=2)
    registry.do(unregistration())
    assert registry.fleet.claim_of("gang") is None
    assert {one.node_id for one in registry.fleet.held()} == {"node-1", "node-2"}
    registry.heartbeats(2, 2, running_jobs=("gang",), gpus=None)
    assert registry.fleet.claim_of("gang") is None
    assert claim.claim_id in registry.node("node-2").held


def test_a_gang_whose_node_cannot_be_read_at_start_is_lost_and_its_other_gpus_stay_held() -> None:
    registry = fleet_of(2)
    claim = registry.claim("gang", gpu_count=1, nodes=2)
    registry.documents[DocumentKind.NODE, "node-1"] = ({"node_id": "node-1"}, registry.now)
    later = Registry()
    later.now = registry.now
    later.documents.update(registry.documents)
    later.restore(registry.stored_documents())
    assert later.fleet.claim_of("gang") is None
    lost = [(str(one.fields["node_id"]), one.fields["claim_id"]) for one in logged(later.done, "claim_lost")]
    assert sorted(lost) == [("node-1", claim.claim_id), ("node-2", claim.claim_id)]
    assert later.document_names == [f"{claim.claim_id}/node-2", "node-1", "node-2"]
    gpu = hardware().gpus[0].model_copy(update={"uuid": "GPU-2-0"})
    later.arrive(proof("node-2"), 9, hardware=hardware().model_copy(update={"gpus": (gpu,)}))
    seen = figures(processes=1)[0].model_copy(update={"uuid": "GPU-2-0"})
    later.heartbeats(4, 9, node_id="node-2", every=5.0, running_jobs=("gang",), gpus=(seen,))
    assert isinstance(later.claim("other", gpu_count=1), NoAvailableNode)
    free = seen.model_copy(update={"processes": 0})
    later.heartbeats(1, 9, node_id="node-2", running_jobs=(), gpus=(free,))
    assert isinstance(later.claim("other", gpu_count=1), Claim)


@pytest.mark.parametrize("nodes", [1, 2])
def test_claims_outlive_a_restart_with_all_their_facts(nodes: int) -> None:
    registry = fleet_of(2)
    claim = registry.claim("job", by="ada", gpu_count=1, nodes=nodes, ttl_seconds=120.0)
    later = Registry()
    later.now = registry.now
    later.restore(registry.stored_documents())
    loaded = later.fleet.claim_of("job")
    assert loaded is not None
    assert (loaded.claim_id, loaded.owner, loaded.grants) == (claim.claim_id, "ada", claim.grants)
    assert loaded.expires_at == later.now + 120.0
    assert loaded.job == claim.job


def test_a_renewed_claim_is_recorded_with_its_new_end() -> None:
    registry = one_gpu()
    registry.claim("job", by="ada")
    registry.pass_time(10.0)
    renewed = registry.renew("job", by="ada")
    record = registry.fleet.claim_history.of_job("job")
    assert record is not None
    assert record.claim.expires_at == renewed.expires_at


def test_a_claim_whose_document_no_store_takes_is_refused_and_reserves_nothing() -> None:
    registry = Registry()
    for connection in (1, 2):
        names = tuple(f"GPU-{connection}-{place:03}-{'x' * 990}" for place in range(256))
        declared = tuple(GpuDeclaration(name="H100", memory_gb=80, uuid=uuid) for uuid in names)
        registry.register(connection, hardware=Hardware(cpu_cores=8, memory_gb=64, gpus=declared))
        registry.heartbeats(3, connection, gpus=None)
    for connection in (1, 2):
        registry.heartbeat(connection, gpus=None)
    refused = registry.claim("gang", gpu_count=256, nodes=2)
    assert code(refused) == "INVALID_MESSAGE"
    assert registry.fleet.claim_of("gang") is None
    assert len(registry.claim("one", gpu_count=256).grants) == 1
    registry.heartbeat(1, gpus=None)
    registry.heartbeat(2, gpus=None)
    assert len(registry.claim("other", gpu_count=256).grants) == 1
