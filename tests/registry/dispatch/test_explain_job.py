from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.exclusions import EXAMPLES_PER_REASON, Eligible, Excluded, Explanation
from gpu_agent.registry.dispatch.explain import count_exclusions, explain_each
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.job import Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus
from tests.registry.dispatch.nodes import gpu, gpus, job, node, usage
from tests.registry.dispatch.random_fleet import random_fleet, random_job


def index_of(*records: NodeRecord) -> Index:
    index = Index(Thresholds())
    for record in records:
        index.update(record)
    return index


def explained_by(index: Index, wanted: Job, affinity_node: str | None = None) -> Explanation:
    return Explanation.of(
        wanted, explain_each(index, Demand.of(wanted), affinity_node=affinity_node, affinity_bonus=200)
    )


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_refusal_of_a_job_for_several_nodes_counts_those_that_could_take_it(dice: Random) -> None:
    index = index_of(*random_fleet(dice))
    for _ in range(20):
        wanted = replace(random_job(dice), nodes=256)
        explained, refused = explained_by(index, wanted), count_exclusions(index, Demand.of(wanted))
        assert (refused.nodes_needed, refused.nodes_eligible) == (256, len(explained.eligible))
        assert (refused.counts, explained.nodes_needed) == (explained.counts, 256)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=True))
def test_d06_a_refusal_counts_exactly_what_every_node_failed_on(dice: Random) -> None:
    index = index_of(*random_fleet(dice))
    for _ in range(20):
        demand = Demand.of(random_job(dice))
        explained = explained_by(index, demand.job)
        if explained.eligible:
            continue
        refused = count_exclusions(index, demand)
        assert refused.counts == explained.counts
        assert refused.nodes_eligible == 0
        for reason, examples in refused.examples.items():
            assert set(examples) <= set(explained.excluded)
            assert len(examples) == min(refused.counts[reason], EXAMPLES_PER_REASON)


def test_a8_an_empty_fleet_is_refused_without_any_reason() -> None:
    refused = count_exclusions(index_of(), Demand.of(job()))
    assert (refused.job_id, refused.counts, refused.examples) == ("job-1", {}, {})
    assert refused.code == "NO_AVAILABLE_NODE"


def test_a8_a_fleet_of_which_every_node_is_excluded_is_refused_under_its_code_with_reasons_counted() -> None:
    fleet = (
        node("drained", status=NodeStatus.DRAINING),
        node("away", connection=None),
        node("cordoned", cordoned="fans"),
        node("bare-1"),
        node("bare-2"),
        node("full", ready_models=frozenset({"asr"}), count=4),
        node("hot", ready_models=frozenset({"asr"}), usage=usage(gpu_percent=99)),
    )
    refused = count_exclusions(index_of(*fleet), Demand.of(job(required_models=("asr",))))
    assert (refused.code, refused.job_id) == ("NO_AVAILABLE_NODE", "job-1")
    assert refused.counts == {
        ExclusionReason.STATUS_NOT_READY: 1,
        ExclusionReason.DISCONNECTED: 1,
        ExclusionReason.CORDONED: 1,
        ExclusionReason.MODEL_NOT_AVAILABLE: 2,
        ExclusionReason.CAPACITY_EXCEEDED: 1,
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED: 1,
    }
    assert sum(refused.counts.values()) == len(fleet)


def test_a8_a_refusal_shows_at_most_five_examples_of_each_reason() -> None:
    drained = [node(f"drained-{n}", status=NodeStatus.DRAINING) for n in range(12)]
    refused = count_exclusions(index_of(*drained, node("bare")), Demand.of(job(required_models=("asr",))))
    assert refused.counts == {ExclusionReason.STATUS_NOT_READY: 12, ExclusionReason.MODEL_NOT_AVAILABLE: 1}
    assert len(refused.examples[ExclusionReason.STATUS_NOT_READY]) == 5
    [bare] = refused.examples[ExclusionReason.MODEL_NOT_AVAILABLE]
    assert (bare.node_id, bare.need) == ("bare", "model asr")
    assert bare.have == "no ready version of it: not installed"


def test_memory_within_one_step_is_counted_as_the_filters_judge_it() -> None:
    short = node("short", gpus=gpus(gpu("g", used_mb=100)), usage=usage(cpu=99))
    busy = node("busy", usage=usage(cpu=99))
    refused = count_exclusions(index_of(short, busy), Demand.of(job(min_gpu_memory_mb=24_500)))
    assert refused.counts == {
        ExclusionReason.CAPACITY_EXCEEDED: 1,
        ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED: 1,
    }


def test_a3_every_exclusion_is_explained_with_node_reason_need_and_have() -> None:
    fleet = (
        node("idle"),
        node("loaded", count=2),
        node("away", connection=None),
        node("hot", usage=usage(gpu_percent=99)),
    )
    explained = explained_by(index_of(*fleet), job())
    assert explained.eligible == ("idle", "loaded")
    assert [(one.node_id, one.reason, one.need, one.have) for one in explained.excluded] == [
        ("hot", ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED, "GPU use of at most 90 %", "99 %"),
        ("away", ExclusionReason.DISCONNECTED, "a connected node", "no connection"),
    ]


def test_the_node_with_affinity_to_a_job_is_explained_with_its_bonus() -> None:
    index = index_of(node("idle"), node("warm", count=1))
    assert explained_by(index, job(), "warm").eligible == ("warm", "idle")


def test_nodes_that_come_or_go_while_a_job_is_explained_break_nothing() -> None:
    index = index_of(node("node-A"), node("node-B"), node("node-C", connection=None))
    answers = explain_each(index, Demand.of(job()), affinity_node=None, affinity_bonus=200)
    assert next(answers) == Eligible("node-A", index.candidates["node-A"].score)
    index.remove("node-B")
    index.update(node("node-D"))
    (gone,) = answers
    assert isinstance(gone, Excluded)
    assert (gone.node_id, gone.reason) == ("node-C", ExclusionReason.DISCONNECTED)


def test_the_nearest_nodes_come_first_by_filters_passed_and_then_by_gpus_missing() -> None:
    busy = node("two-short", gpus=gpus(gpu("A"), gpu("B"), gpu("C", name="H100"), gpu("D", name="H100")))
    fleet = (
        node("away", connection=None),
        node("cordoned", cordoned="a fan"),
        node("small", hostname="b"),
        busy,
        node("small-2", hostname="a"),
    )
    explained = explained_by(index_of(*fleet), job(gpu_count=3, gpu_name="L4"))
    assert [(one.node_id, one.missing_gpus) for one in explained.excluded] == [
        ("two-short", 1),
        ("small-2", 2),
        ("small", 2),
        ("cordoned", 0),
        ("away", 0),
    ]


def test_eligible_nodes_are_named_with_their_hostnames() -> None:
    explained = explained_by(index_of(node("node-A", hostname="gpu-1")), job())
    assert [(one.node_id, one.hostname) for one in explained.eligible_nodes] == [("node-A", "gpu-1")]
