"""Dispatch: which node and GPUs a job gets, and how claims are held, renewed and lost."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.candidate import best_score, score
from gpu_agent.registry.dispatch.dispatch import (
    AFFINITY_SECONDS,
    LOST_PER_NODE,
    REMEMBERED_KEYS,
    AffinityTable,
    Choice,
    ClaimTable,
    Dispatch,
)
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.job import Claim, ClaimEnd, Grant, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus
from gpu_agent.wire.heartbeat import GpuColumns
from tests.registry.dispatch.model_check import ModelCheck
from tests.registry.dispatch.nodes import (
    change,
    chosen,
    claimed,
    dispatching,
    gpu,
    gpus,
    job,
    lost,
    node,
    refused,
    released,
    usage,
)
from tests.registry.dispatch.random_fleet import NODE_IDS

TTL = 60.0


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.READY])
def test_d01_only_a_ready_node_is_chosen(status: NodeStatus) -> None:
    record = node(status=status)
    dispatch = dispatching(record)
    assert refused(dispatch, job()) == {ExclusionReason.STATUS_NOT_READY: 1}
    record.status = NodeStatus.READY
    dispatch.update(record)
    assert chosen(dispatch, job()).grants[0].node_id == "node-A"


def test_d02_a_public_job_is_placed_in_the_public_pool_only() -> None:
    dispatch = dispatching(node("private"), node("public", accept_public_jobs=True, count=3))
    assert chosen(dispatch, job(public=True)).grants[0].node_id == "public"
    assert chosen(dispatch, job()).grants[0].node_id == "private"


def test_d03_a_job_is_placed_where_there_are_enough_gpus_of_its_kind() -> None:
    pair = node("pair", gpus=gpus(gpu("a", name="NVIDIA H100"), gpu("b", name="NVIDIA H100")), count=3)
    dispatch = dispatching(node("single", gpus=gpus(gpu("c", name="NVIDIA H100"))), pair)
    assert chosen(dispatch, job(gpu_name="H100", gpu_count=2)).grants[0].node_id == "pair"


def test_d04_a_job_is_placed_where_its_models_are_ready() -> None:
    serving = node("serving", ready_models=frozenset({"asr", "nmt"}), count=3)
    dispatch = dispatching(node("bare"), serving)
    assert chosen(dispatch, job(required_models=("nmt", "asr"))).grants[0].node_id == "serving"


def test_d05_two_jobs_never_share_the_last_slot() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=1))
    first = claimed(dispatch, job("job-1"))
    assert refused(dispatch, job("job-2")) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    assert released(dispatch, "job-1") == first
    assert claimed(dispatch, job("job-2")).grants[0].node_id == "node-A"


def test_d05_a_node_over_a_resource_limit_is_left_out() -> None:
    assert refused(dispatching(node(usage=usage(cpu=95))), job()) == {
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED: 1
    }


def test_d06_no_eligible_node_gives_counted_reasons() -> None:
    dispatch = dispatching(
        node("away", connection=None), node("bare"), node("drained", status=NodeStatus.OFFLINE)
    )
    answer = dispatch.claim(job(required_models=("asr",)), 0.0, claim_id="c", owner=None)
    assert isinstance(answer, NoAvailableNode)
    assert answer.counts == {
        ExclusionReason.STATUS_NOT_READY: 1,
        ExclusionReason.DISCONNECTED: 1,
        ExclusionReason.MODEL_NOT_AVAILABLE: 1,
    }


def test_a3_every_node_is_explained_on_request() -> None:
    explained = dispatching(node("idle"), node("away", connection=None)).explain(job(), 0.0)
    assert explained.eligible == ("idle",)
    assert [(one.node_id, one.reason) for one in explained.excluded] == [
        ("away", ExclusionReason.DISCONNECTED)
    ]


def test_a_choice_reserves_nothing() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=1, endpoint="http://10.0.0.7:9000"))
    grant = Grant(node_id="node-A", endpoint="http://10.0.0.7:9000", gpu_uuids=("GPU-0",), gpu_indices=(0,))
    expected = Choice((grant,), best_score(Thresholds()))
    wanted = job(gpu_count=1)
    assert dispatch.select(wanted, 0.0) == dispatch.select(wanted, 0.0) == expected


def test_a_claim_says_where_and_for_how_long() -> None:
    dispatch = dispatching(node(endpoint="http://10.0.0.7:9000"), claim_ttl_seconds=30.0)
    wanted = job(min_gpu_memory_mb=4_000, affinity_key="session-1")
    placed = dispatch.claim(wanted, 100.0, claim_id="c0ffee", owner="ada")
    assert isinstance(placed, tuple)
    claim, ended = placed
    assert ended == []
    assert claim == Claim(
        claim_id="c0ffee",
        job=wanted,
        owner="ada",
        grants=(
            Grant(node_id="node-A", endpoint="http://10.0.0.7:9000", gpu_uuids=("GPU-0",), gpu_indices=(0,)),
        ),
        granted_at=100.0,
        expires_at=130.0,
        ttl_seconds=30.0,
    )
    assert dispatch.claim_of("job-1") == claim


def test_claims_spread_over_equal_nodes_by_load() -> None:
    dispatch = dispatching(*(node(node_id) for node_id in NODE_IDS))
    assert {claimed(dispatch, job(f"job-{n}")).grants[0].node_id for n in range(8)} == set(NODE_IDS)


def test_a_claim_expires_unless_renewed() -> None:
    record = node()
    dispatch = dispatching(record)
    claimed(dispatch, job("renewed"))
    claimed(dispatch, job("left"))
    assert dispatch.next_expiry == TTL
    renewed = dispatch.renew("renewed", 40.0)
    assert renewed is not None
    assert record.claims["renewed"] is renewed
    assert [claim.job_id for claim in expired(dispatch, TTL)] == ["left"]
    assert list(record.claims) == ["renewed"]
    assert dispatch.next_expiry == 100.0
    assert dispatch.renew("left", TTL) is None


def test_releasing_what_is_not_held_changes_nothing() -> None:
    assert released(dispatching(node()), "job-1") is None


def test_a_nodes_claims_are_lost_with_it_and_attached_when_found_running() -> None:
    record = node(max_concurrent_jobs=2)
    dispatch = dispatching(record)
    claim = claimed(dispatch, job(min_gpu_memory_mb=20_000))
    record.status = NodeStatus.OFFLINE
    dispatch.update(record)
    assert lost(dispatch, "node-A") == [claim]
    assert dispatch.claim_of("job-1") is None
    record.status = NodeStatus.READY
    change(record, ids=frozenset({"job-1"}))
    record.gpus["GPU-0"].memory_used_mb = 20_000
    dispatch.update(record)
    again = replace(claim, expires_at=500.0)
    assert dispatch.attach(again) == again
    assert dispatch.claim_of("job-1") == again
    assert record.in_flight_jobs == 1
    assert chosen(dispatch, job("job-2", min_gpu_memory_mb=4_000)).grants[0].node_id == "node-A"


def test_a_lost_claim_is_not_attached_when_its_job_is_claimed_elsewhere() -> None:
    dispatch = dispatching(node("node-A", count=1))
    claim = claimed(dispatch, job())
    lost(dispatch, "node-A")
    dispatch.update(node("node-B"))
    elsewhere = claimed(dispatch, job())
    assert elsewhere.grants[0].node_id == "node-B"
    assert dispatch.attach(claim) is None
    assert dispatch.claim_of("job-1") is elsewhere


def test_attaching_replaces_what_the_job_holds_on_that_node() -> None:
    record = node()
    dispatch = dispatching(record)
    before = claimed(dispatch, job())
    dispatch.renew("job-1", 30.0)
    assert dispatch.attach(before) == before
    assert dispatch.next_expiry == TTL
    assert record.in_flight_jobs == 1


def test_a_claim_on_an_unknown_node_cannot_be_attached_or_lost() -> None:
    dispatch = dispatching(node())
    claim = claimed(dispatch, job())
    assert dispatch.attach(replace(claim, grants=(Grant(node_id="node-X"),))) is None
    assert lost(dispatch, "node-X") == []


def test_a_claim_may_be_attached_to_a_gpu_that_is_no_longer_there() -> None:
    record = node()
    dispatch = dispatching(record)
    claim = claimed(dispatch, job(min_gpu_memory_mb=1_000))
    released(dispatch, "job-1")
    record.gpus = gpus(gpu("GPU-new"))
    dispatch.update(record)
    assert dispatch.attach(claim) == claim
    assert released(dispatch, "job-1") == claim


def test_a_forgotten_node_takes_its_claims_with_it() -> None:
    dispatch = dispatching(node())
    claimed(dispatch, job())
    dispatch.remove("node-A")
    assert dispatch.claim_of("job-1") is None
    assert dispatch.next_expiry is None
    assert refused(dispatch, job()) == {}


def test_fewer_slots_keep_existing_claims() -> None:
    record = node()
    dispatch = dispatching(record)
    held = [claimed(dispatch, job(f"job-{n}")) for n in range(3)]
    change(record, max_concurrent_jobs=1)
    dispatch.update(record)
    assert [dispatch.claim_of(claim.job_id) for claim in held] == held
    assert refused(dispatch, job("job-9")) == {ExclusionReason.CAPACITY_EXCEEDED: 1}


def test_a_drain_keeps_claims_and_takes_no_new_job() -> None:
    record = node()
    dispatch = dispatching(record)
    claim = claimed(dispatch, job())
    record.status = NodeStatus.DRAINING
    dispatch.update(record)
    assert dispatch.claim_of("job-1") is claim
    assert refused(dispatch, job("job-2")) == {ExclusionReason.STATUS_NOT_READY: 1}


def test_a_record_that_comes_to_stand_for_a_node_has_its_claims() -> None:
    dispatch = dispatching(node())
    claim = claimed(dispatch, job())
    successor = node()
    dispatch.update(successor)
    assert successor.claims == {"job-1": claim}


def test_a_node_with_affinity_is_preferred_to_one_that_is_little_better() -> None:
    warm, idle = node("warm"), node("idle", status=NodeStatus.REGISTERING)
    dispatch = dispatching(warm, idle)
    claimed(dispatch, job(affinity_key="session-1"))
    idle.status = NodeStatus.READY
    dispatch.update(idle)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")) == Choice(
        (Grant(node_id="warm"),), score(warm, 1, Thresholds()) + Thresholds().affinity_bonus
    )
    assert chosen(dispatch, job("job-2")).grants[0].node_id == "idle"
    assert dispatch.explain(job("job-2", affinity_key="session-1"), 0.0).eligible == ("warm", "idle")


def test_a_node_with_affinity_is_not_preferred_when_it_is_much_worse_or_unable() -> None:
    warm, idle = node("warm"), node("idle", status=NodeStatus.REGISTERING)
    dispatch = dispatching(warm, idle)
    claimed(dispatch, job(affinity_key="session-1"))
    idle.status = NodeStatus.READY
    dispatch.update(idle)
    change(warm, count=3, usage=usage(gpu_percent=85, gpu_memory=85))
    dispatch.update(warm)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")).grants[0].node_id == "idle"
    change(warm, count=0, usage=usage(), connection=None)
    dispatch.update(warm)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")).grants[0].node_id == "idle"


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=True))
def test_every_answer_is_as_good_as_a_scan_gives_in_any_order_of_events(dice: Random) -> None:
    check = ModelCheck(dice)
    for _ in range(80):
        check.step()


def test_a_claim_that_is_over_ends_with_those_before_it_or_when_it_is_requested() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=5))
    for number in range(4):
        claimed(dispatch, job(f"job-{number}"), float(number))
    over = expired(dispatch, 1000.0, most=1, of_job="job-2")
    assert [claim.job_id for claim in over] == ["job-0", "job-2"]
    assert [claim.job_id for claim in expired(dispatch, 62.5, of_job="job-3")] == ["job-1"]
    assert [claim.job_id for claim in dispatch.claims()] == ["job-3"]


@pytest.mark.parametrize(("bonus", "favoured"), [(0, "idle"), (1000, "warm")])
def test_the_affinity_bonus_is_a_setting(bonus: int, favoured: str) -> None:
    dispatch = dispatching(node("warm", max_concurrent_jobs=2), affinity_bonus=bonus)
    claimed(dispatch, job("job-1", affinity_key="talk"))
    dispatch.update(node("idle"))
    assert chosen(dispatch, job("job-2", affinity_key="talk")).grants[0].node_id == favoured


def expired(dispatch: Dispatch, now: float, **parts: Any) -> list[Claim]:  # noqa: ANN401 - passed through
    over = dispatch.due(now, **parts)
    for claim in over:
        dispatch.end(claim.job_id, ClaimEnd.EXPIRED, now)
    return over


def entry(job_id: str, expires_at: float, *, ttl_seconds: float = 60.0) -> Claim:
    return Claim(
        claim_id=f"claim of {job_id}",
        job=job(job_id),
        owner=None,
        grants=(Grant(node_id="node-A"),),
        granted_at=0.0,
        expires_at=expires_at,
        ttl_seconds=ttl_seconds,
    )


def end_due(claims: ClaimTable, now: float, most: int | None = None) -> list[Claim]:
    over = claims.due(now, most)
    for claim in over:
        claims.end(claim.job_id)
    return over


def test_claims_end_in_time_the_earliest_first() -> None:
    claims = ClaimTable(60.0)
    for job_id, at in (("late", 90.0), ("early", 30.0), ("middle", 60.0)):
        claims.hold(entry(job_id, at))
    assert claims.next_expiry == 30.0
    assert [claim.job_id for claim in end_due(claims, 60.0)] == ["early", "middle"]
    assert claims.next_expiry == 90.0
    assert claims.of("early") is None


def test_a_renewed_claim_ends_one_ttl_after_its_renewal() -> None:
    claims = ClaimTable(60.0)
    claims.hold(entry("job-1", 60.0))
    renewed = claims.renew("job-1", 50.0)
    assert renewed is not None
    assert renewed.expires_at == claims.next_expiry == 110.0
    assert end_due(claims, 60.0) == []
    assert end_due(claims, 110.0) == [renewed]
    assert claims.next_expiry is None


def test_a_claim_that_ended_does_not_end_again() -> None:
    claims = ClaimTable(60.0)
    claims.hold(entry("job-1", 60.0))
    assert claims.end("job-1") == entry("job-1", 60.0)
    assert claims.end("job-1") is None
    assert claims.next_expiry is None
    assert end_due(claims, 1000.0) == []


def test_what_is_not_held_cannot_be_renewed() -> None:
    assert ClaimTable(60.0).renew("job-1", 0.0) is None


def test_entering_the_same_end_twice_ends_a_claim_once() -> None:
    claims = ClaimTable(60.0)
    claims.hold(entry("job-1", 60.0))
    claims.hold(entry("job-1", 60.0))
    assert len(end_due(claims, 60.0)) == 1


def test_a_claim_renewed_over_and_over_takes_no_room_for_long() -> None:
    claims = ClaimTable(86_400.0)
    claims.hold(entry("job-0", 10_500.0))
    claims.hold(entry("job-1", 86_400.0, ttl_seconds=86_400.0))
    for second in range(10_000):
        claims.renew("job-1", float(second))
    assert claims.entries < 100
    assert claims.next_expiry == 10_500.0
    assert [claim.job_id for claim in end_due(claims, 1e6)] == ["job-0", "job-1"]


def test_of_many_claims_that_are_over_so_many_end_the_earliest_first() -> None:
    claims = ClaimTable(60.0)
    for number in range(5):
        claims.hold(entry(f"job-{number}", 60.0 + number))
    assert [claim.job_id for claim in end_due(claims, 100.0, 2)] == ["job-0", "job-1"]
    assert claims.next_expiry == 62.0
    assert len(end_due(claims, 100.0)) == 3


def test_the_node_that_last_held_a_key_has_affinity_to_it() -> None:
    affinities = AffinityTable()
    affinities.remember("session-7", "node-A", 0.0)
    affinities.remember("session-7", "node-B", 5.0)
    assert affinities.node_of("session-7", 6.0) == "node-B"


def test_a_node_cools_down() -> None:
    affinities = AffinityTable()
    affinities.remember("session-7", "node-A", 0.0)
    assert affinities.node_of("session-7", AFFINITY_SECONDS) == "node-A"
    assert affinities.node_of("session-7", AFFINITY_SECONDS + 1) is None


def test_no_key_is_no_affinity() -> None:
    affinities = AffinityTable()
    affinities.remember(None, "node-A", 0.0)
    assert affinities.node_of(None, 0.0) is None


def test_the_key_held_longest_ago_is_forgotten_first() -> None:
    affinities = AffinityTable()
    for number in range(REMEMBERED_KEYS):
        affinities.remember(str(number), "node-A", 0.0)
    affinities.remember("0", "node-A", 1.0)
    affinities.remember("one more", "node-A", 1.0)
    assert affinities.node_of("1", 1.0) is None
    assert affinities.node_of("0", 1.0) == affinities.node_of("one more", 1.0) == "node-A"


def chosen_gpus(record: NodeRecord, wanted: Job, *shared: str) -> list[str]:
    """Return the GPUs that a job gets on a node where other claims share some."""
    dispatch = dispatching(record)
    for uuid in shared:
        other = job(f"job of {uuid}", gpu_name=record.gpus[uuid].name, min_gpu_memory_mb=1)
        claim = claimed(dispatch, other)
        assert claim.grants[0].gpu_uuids == (uuid,)
    return list(chosen(dispatch, wanted).grants[0].gpu_uuids)


def test_only_usable_gpus_of_that_name_with_enough_free_memory_are_shared() -> None:
    record = node(
        gpus=gpus(
            gpu("lost", health="lost"),
            gpu("other", name="Tesla T4", memory_mb=90_000),
            gpu("taken", used_mb=20_000),
            gpu("unknown", memory_mb=None),
            gpu("fits", used_mb=1_000),
        )
    )
    assert chosen_gpus(record, job(gpu_name="l4", min_gpu_memory_mb=10_000)) == ["fits"]


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_the_figures_of_one_heartbeat_rank_gpus_as_single_figures_do(dice: Random) -> None:
    number = dice.randint(1, 8)
    used = [dice.choice((0, 1, 300, 20_000, 24_576, 30_000)) for _ in range(number)]
    use = [dice.choice((None, 0.0, 20.0, 80.0)) for _ in range(number)]
    written, single = (node(node_id, gpus=gpus(*map(gpu, "abcdefgh"[:number]))) for node_id in ("w", "s"))
    figures = GpuColumns(
        uuid=tuple("abcdefgh"[:number]),
        utilization_percent=tuple(use),
        memory_used_mb=tuple(used),
        memory_total_mb=(24_576,) * number,
        temperature_c=(None,) * number,
        power_w=(None,) * number,
        processes=(0,) * number,
        health=("ok",) * number,
        reasons=((),) * number,
    )
    written.gpus.write(figures, exactly=False)
    for state, memory, percent in zip(single.gpus.values(), used, use, strict=True):
        state.memory_used_mb, state.utilization_percent, state.processes = memory, percent, 0
    wanted = job(
        gpu_sharing="memory", min_gpu_memory_mb=dice.choice((1, 4_576, 24_276)), gpu_count=dice.randint(1, 3)
    )
    answers = [dispatching(one).select(wanted, 0.0) for one in (written, single)]
    chosen = [one.grants[0].gpu_uuids if isinstance(one, Choice) else None for one in answers]
    assert chosen[0] == chosen[1]


def test_gpus_that_are_shared_already_come_first_then_the_freest_then_the_least_busy() -> None:
    states = [
        gpu("shared", name="NVIDIA L4 A", used_mb=5_000),
        gpu("used", used_mb=4_000),
        gpu("busy", used_mb=2_000),
        gpu("idle", used_mb=2_000),
    ]
    for state, busy in zip(states[2:], (80.0, 10.0), strict=True):
        state.utilization_percent = busy
    record = node(gpus=gpus(*states))
    wanted = job(gpu_sharing="memory", min_gpu_memory_mb=1_000, gpu_count=4)
    assert chosen_gpus(record, wanted, "shared") == ["shared", "idle", "busy", "used"]


def test_a_job_for_whole_gpus_gets_the_smallest_that_suffice() -> None:
    record = node(gpus=gpus(gpu("large", memory_mb=80_000), gpu("small"), gpu("medium", memory_mb=40_000)))
    assert chosen_gpus(record, job(gpu_count=1)) == ["small"]
    assert chosen_gpus(record, job(gpu_count=1, min_gpu_memory_mb=30_000)) == ["medium"]
    assert chosen_gpus(record, job(gpu_count=2)) == ["small", "medium"]


def test_a_job_for_a_slot_alone_gets_no_gpu() -> None:
    assert chosen_gpus(node(), job()) == []


def test_a_use_that_is_no_percentage_counts_as_half() -> None:
    absurd, busy, idle = gpu("absurd"), gpu("busy"), gpu("idle")
    absurd.utilization_percent, busy.utilization_percent, idle.utilization_percent = -1e15, 80.0, 20.0
    record = node(gpus=gpus(absurd, busy, idle))
    wanted = job(gpu_sharing="memory", min_gpu_memory_mb=1_000, gpu_count=3)
    assert chosen_gpus(record, wanted) == ["idle", "absurd", "busy"]


def test_what_a_lost_claim_holds_is_not_given_to_another_job_and_is_given_to_its_own() -> None:
    dispatch = dispatching(node())
    claimed(dispatch, job("job-1", gpu_count=1))
    lost(dispatch, "node-A")
    assert refused(dispatch, job("job-2", gpu_count=1)) == {ExclusionReason.CAPACITY_EXCEEDED: 1}
    assert claimed(dispatch, job("job-1", gpu_count=1)).grants[0].gpu_uuids == ("GPU-0",)
    assert dispatch.held() == []


def test_of_lost_claims_without_gpus_only_so_many_are_held_on_a_node_the_latest_of_them() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=LOST_PER_NODE + 5))
    for number in range(LOST_PER_NODE + 5):
        claimed(dispatch, job(f"job-{number}"))
    lost(dispatch, "node-A")
    held = [one.claim.job_id for one in dispatch.held()]
    assert (len(held), held[0]) == (LOST_PER_NODE, "job-5")


def test_one_gpu_under_two_nodes_is_given_out_by_the_one_that_registered_last_and_once() -> None:
    early, late = (
        node(node_id, registered_at=at, gpus=gpus(gpu("GPU-0")))
        for node_id, at in (("early", 1.0), ("late", 2.0))
    )
    dispatch = dispatching(early, late)
    assert early.duplicate_gpus == late.duplicate_gpus == frozenset({"GPU-0"})
    claim = claimed(dispatch, job("job-1", gpu_count=1))
    assert claim.grants[0].node_id == "late"
    for status in (NodeStatus.READY, NodeStatus.OFFLINE):
        late.status = status
        dispatch.update(late)
        assert isinstance(dispatch.select(job("job-2", gpu_count=1), 0.0), NoAvailableNode)
    released(dispatch, "job-1")
    assert chosen(dispatch, job("job-2", gpu_count=1)).grants[0].node_id == "early"
