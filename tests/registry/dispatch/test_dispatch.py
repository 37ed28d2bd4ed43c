from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.scoring import best_score, score
from gpu_agent.registry.dispatch.verdict import Exclusion, NoAvailableNode
from gpu_agent.registry.job import Claim
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.fleets import NODE_IDS
from tests.registry.dispatch.nodes import chosen, claimed, dispatching, gpu, gpus, job, node, refused, usage
from tests.registry.dispatch.played import Played

TTL = 60.0


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.READY])
def test_d01_only_a_ready_node_is_chosen(status: NodeStatus) -> None:
    record = node(status=status)
    dispatch = dispatching(record)
    assert refused(dispatch, job()) == {Exclusion.STATUS_NOT_READY: 1}
    record.status = NodeStatus.READY
    dispatch.refresh(record)
    assert chosen(dispatch, job()).node_id == "node-A"


def test_d02_a_public_job_is_placed_in_the_public_pool_only() -> None:
    dispatch = dispatching(node("private"), node("public", accept_public_jobs=True, reported_jobs=3))
    assert chosen(dispatch, job(public=True)).node_id == "public"
    assert chosen(dispatch, job()).node_id == "private"


def test_d03_a_job_is_placed_where_there_are_enough_gpus_of_its_kind() -> None:
    pair = node(
        "pair", gpus=gpus(gpu("a", name="NVIDIA H100"), gpu("b", name="NVIDIA H100")), reported_jobs=3
    )
    dispatch = dispatching(node("single", gpus=gpus(gpu("c", name="NVIDIA H100"))), pair)
    assert chosen(dispatch, job(gpu_name="H100", gpu_count=2)).node_id == "pair"


def test_d04_a_job_is_placed_where_its_models_are_ready() -> None:
    serving = node("serving", ready_models=frozenset({"asr", "nmt"}), reported_jobs=3)
    dispatch = dispatching(node("bare"), serving)
    assert chosen(dispatch, job(required_models=("nmt", "asr"))).node_id == "serving"


def test_d05_two_jobs_never_share_the_last_place() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=1))
    first = claimed(dispatch, job("job-1"))
    assert isinstance(dispatch.claim(job("job-2"), 0.0), NoAvailableNode)
    assert dispatch.release("job-1") == first
    assert claimed(dispatch, job("job-2")).node_id == "node-A"


def test_d05_a_node_over_a_resource_limit_is_left_out() -> None:
    assert refused(dispatching(node(usage=usage(cpu=95))), job()) == {
        Exclusion.RESOURCE_THRESHOLD_EXCEEDED: 1
    }


def test_d06_nobody_left_gives_counted_reasons() -> None:
    dispatch = dispatching(
        node("away", connection=None), node("bare"), node("drained", status=NodeStatus.OFFLINE)
    )
    answer = dispatch.claim(job(required_models=("asr",)), 0.0)
    assert isinstance(answer, NoAvailableNode)
    assert answer.counts == {
        Exclusion.STATUS_NOT_READY: 1,
        Exclusion.DISCONNECTED: 1,
        Exclusion.MODEL_NOT_AVAILABLE: 1,
    }


def test_a3_every_node_is_explained_on_request() -> None:
    explained = dispatching(node("idle"), node("away", connection=None)).explain(job(), 0.0)
    assert explained.able == ("idle",)
    assert [(one.node_id, one.reason) for one in explained.excluded] == [("away", Exclusion.DISCONNECTED)]


def test_a_choice_reserves_nothing() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=1, endpoint="http://10.0.0.7:9000"))
    expected = Choice("node-A", ("GPU-0",), "http://10.0.0.7:9000", best_score(Thresholds()))
    assert dispatch.select(job(), 0.0) == dispatch.select(job(), 0.0) == expected


def test_a_claim_says_where_and_for_how_long() -> None:
    dispatch = dispatching(node(endpoint="http://10.0.0.7:9000"), claim_ttl_seconds=30.0)
    claim = claimed(dispatch, job(min_gpu_memory_mb=4_000, affinity_key="session-1"), 100.0)
    assert claim == Claim(
        job_id="job-1",
        node_id="node-A",
        gpu_uuids=("GPU-0",),
        endpoint="http://10.0.0.7:9000",
        granted_at=100.0,
        expires_at=130.0,
        memory_mb=4_000,
        affinity_key="session-1",
    )
    assert dispatch.claim_of("job-1") == claim


def test_the_same_job_again_returns_the_same_claim() -> None:
    record = node()
    dispatch = dispatching(record)
    first = claimed(dispatch, job())
    assert claimed(dispatch, job(required_models=("asr",)), 10.0) is first
    assert record.in_flight_jobs == 1


def test_claims_spread_over_equal_nodes_by_load() -> None:
    dispatch = dispatching(*(node(node_id) for node_id in NODE_IDS))
    assert {claimed(dispatch, job(f"job-{n}")).node_id for n in range(8)} == set(NODE_IDS)


def test_a_claim_expires_unless_renewed() -> None:
    record = node()
    dispatch = dispatching(record)
    claimed(dispatch, job("kept"))
    claimed(dispatch, job("left"))
    assert dispatch.next_expiry == TTL
    renewed = dispatch.renew("kept", 40.0)
    assert renewed is not None
    assert record.claims["kept"] is renewed
    assert [claim.job_id for claim in dispatch.expire(TTL)] == ["left"]
    assert list(record.claims) == ["kept"]
    assert dispatch.next_expiry == 100.0
    assert dispatch.renew("left", TTL) is None


def test_releasing_what_is_not_held_changes_nothing() -> None:
    assert dispatching(node()).release("job-1") is None


def test_a_nodes_claims_are_lost_with_it_and_attached_when_found_running() -> None:
    record = node(max_concurrent_jobs=2)
    dispatch = dispatching(record)
    claim = claimed(dispatch, job(min_gpu_memory_mb=20_000))
    record.status = NodeStatus.OFFLINE
    dispatch.refresh(record)
    assert dispatch.lose("node-A") == [claim]
    assert dispatch.claim_of("job-1") is None
    record.status = NodeStatus.READY
    record.reported_job_ids = frozenset({"job-1"})
    record.gpus["GPU-0"].memory_used_mb = 20_000
    dispatch.refresh(record)
    again = replace(claim, expires_at=500.0)
    assert dispatch.attach(again) == again
    assert dispatch.claim_of("job-1") == again
    assert record.in_flight_jobs == 1
    assert chosen(dispatch, job("job-2", min_gpu_memory_mb=4_000)).node_id == "node-A"


def test_a_lost_claim_is_not_attached_when_its_job_is_claimed_elsewhere() -> None:
    dispatch = dispatching(node("node-A", reported_jobs=1))
    claim = claimed(dispatch, job())
    dispatch.lose("node-A")
    dispatch.refresh(node("node-B"))
    elsewhere = claimed(dispatch, job())
    assert elsewhere.node_id == "node-B"
    assert dispatch.attach(claim) is None
    assert dispatch.claim_of("job-1") is elsewhere


def test_attaching_takes_the_place_of_what_the_job_holds_on_that_node() -> None:
    record = node()
    dispatch = dispatching(record)
    before = claimed(dispatch, job())
    dispatch.renew("job-1", 30.0)
    assert dispatch.attach(before) == before
    assert dispatch.next_expiry == TTL
    assert record.in_flight_jobs == 1


def test_a_claim_on_an_unknown_node_cannot_be_attached_or_lost() -> None:
    dispatch = dispatching(node())
    assert dispatch.attach(replace(claimed(dispatch, job()), node_id="node-X")) is None
    assert dispatch.lose("node-X") == []


def test_a_claim_may_be_attached_to_a_gpu_that_is_no_longer_there() -> None:
    record = node()
    dispatch = dispatching(record)
    claim = claimed(dispatch, job(min_gpu_memory_mb=1_000))
    dispatch.release("job-1")
    record.gpus = gpus(gpu("GPU-new"))
    dispatch.refresh(record)
    assert dispatch.attach(claim) == claim
    assert dispatch.release("job-1") == claim


def test_a_forgotten_node_takes_its_claims_with_it() -> None:
    dispatch = dispatching(node())
    claimed(dispatch, job())
    dispatch.forget("node-A")
    assert dispatch.claim_of("job-1") is None
    assert dispatch.next_expiry is None
    assert refused(dispatch, job()) == {}


def test_fewer_slots_keep_existing_claims() -> None:
    record = node()
    dispatch = dispatching(record)
    held = [claimed(dispatch, job(f"job-{n}")) for n in range(3)]
    record.max_concurrent_jobs = 1
    dispatch.refresh(record)
    assert [dispatch.claim_of(claim.job_id) for claim in held] == held
    assert refused(dispatch, job("job-9")) == {Exclusion.CAPACITY_EXCEEDED: 1}


def test_a_drain_keeps_claims_and_takes_no_new_job() -> None:
    record = node()
    dispatch = dispatching(record)
    claim = claimed(dispatch, job())
    record.status = NodeStatus.DRAINING
    dispatch.refresh(record)
    assert dispatch.claim_of("job-1") is claim
    assert refused(dispatch, job("job-2")) == {Exclusion.STATUS_NOT_READY: 1}


def test_a_record_that_comes_to_stand_for_a_node_has_its_claims() -> None:
    dispatch = dispatching(node())
    claim = claimed(dispatch, job())
    successor = node()
    dispatch.refresh(successor)
    assert successor.claims == {"job-1": claim}


def test_a_warm_node_is_preferred_to_one_that_is_little_better() -> None:
    warm, idle = node("warm"), node("idle", status=NodeStatus.REGISTERING)
    dispatch = dispatching(warm, idle)
    claimed(dispatch, job(affinity_key="session-1"))
    idle.status = NodeStatus.READY
    dispatch.refresh(idle)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")) == Choice(
        "warm", ("GPU-0",), None, score(warm, 1, Thresholds()) + Thresholds().affinity_bonus
    )
    assert chosen(dispatch, job("job-2")).node_id == "idle"
    assert dispatch.explain(job("job-2", affinity_key="session-1"), 0.0).able == ("warm", "idle")


def test_a_warm_node_is_not_preferred_when_it_is_much_worse_or_unable() -> None:
    warm, idle = node("warm"), node("idle", status=NodeStatus.REGISTERING)
    dispatch = dispatching(warm, idle)
    claimed(dispatch, job(affinity_key="session-1"))
    idle.status = NodeStatus.READY
    dispatch.refresh(idle)
    warm.reported_jobs, warm.usage = 3, usage(gpu_percent=85, gpu_memory=85)
    dispatch.refresh(warm)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")).node_id == "idle"
    warm.reported_jobs, warm.usage, warm.connection = 0, usage(), None
    dispatch.refresh(warm)
    assert chosen(dispatch, job("job-2", affinity_key="session-1")).node_id == "idle"


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=True))
def test_every_answer_is_as_good_as_a_scan_gives_in_any_order_of_events(dice: Random) -> None:
    played = Played(dice)
    for _ in range(80):
        played.step()


def test_a_claim_that_is_over_ends_with_those_before_it_or_when_it_is_asked_for() -> None:
    dispatch = dispatching(node(max_concurrent_jobs=5))
    for number in range(4):
        claimed(dispatch, job(f"job-{number}"), float(number))
    over = dispatch.expire(1000.0, most=1, of_job="job-2")
    assert [claim.job_id for claim in over] == ["job-0", "job-2"]
    assert [claim.job_id for claim in dispatch.expire(62.5, of_job="job-3")] == ["job-1"]
    assert [claim.job_id for claim in dispatch.claims()] == ["job-3"]


@pytest.mark.parametrize(("bonus", "favoured"), [(0, "idle"), (1000, "warm")])
def test_the_affinity_bonus_is_a_setting(bonus: int, favoured: str) -> None:
    dispatch = dispatching(node("warm", max_concurrent_jobs=2), affinity_bonus=bonus)
    claimed(dispatch, job("job-1", affinity_key="talk"))
    dispatch.refresh(node("idle"))
    assert chosen(dispatch, job("job-2", affinity_key="talk")).node_id == favoured
