from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry import objections
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.filters import exclusion
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.dispatch.view import NodeView
from gpu_agent.registry.objections import Objection
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.dispatch.fleets import MODELS, random_job, random_node
from tests.registry.dispatch.nodes import claimed, dispatching, gpu, gpus, job, model, node, usage


def view_of(record: NodeRecord) -> NodeView:
    return NodeView(record, 0, Thresholds())


def against(record: NodeRecord, asked: str | None = None) -> list[Objection]:
    return list(objections.objections(view_of(record), 0.0, asked))


def account(record: NodeRecord, asked: str | None = None) -> list[tuple[str, str, str, str, str]]:
    return [
        (one.reason.value, one.refuses, one.need, one.have, one.clears_when)
        for one in against(record, asked)
        if one.reason is not Exclusion.NOT_IN_PUBLIC_POOL
    ]


def limit(record: NodeRecord, reason: Exclusion) -> Objection:
    (found,) = [one for one in objections.limits(view_of(record)) if one.reason is reason]
    return found


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_job_is_refused_by_the_filters_just_when_an_objection_or_a_limit_covers_it(dice: Random) -> None:
    record = random_node(dice, "node-A")
    record.models = tuple(model(one) for one in MODELS if dice.random() < 1 / 2)
    dispatch = Dispatch(Thresholds(), lambda: 0.0)
    dispatch.refresh(record)
    dispatch.claim(random_job(dice), 0.0)
    view = dispatch.view("node-A")
    assert view is not None
    found = [*objections.objections(view, 0.0, dice.choice((None, "asr"))), *objections.limits(view)]
    for _ in range(30):
        demand = Demand.of(random_job(dice))
        covering = {one.reason for one in found if one.scope.covers(demand)}
        refused = exclusion(view, demand)
        if refused is None:
            assert covering == set()
        else:
            assert refused.reason in covering


def test_a_node_that_is_well_has_no_objection_and_tells_what_it_is() -> None:
    record = node(accept_public_jobs=True, ready_models=frozenset({"asr"}), models=(model("asr"),))
    assert against(record) == []
    told = [(one.reason.value, one.refuses) for one in objections.limits(view_of(record))]
    assert told == [
        ("not_allowed", "jobs whose allowed_nodes leave it out"),
        ("gpu_unavailable", "jobs that need more than 1 GPU, or GPUs that are no NVIDIA L4"),
        ("model_not_available", "jobs that need any model but asr"),
        ("feature_not_supported", "jobs that need a feature"),
        ("label_mismatch", "jobs that ask for a label"),
        ("capacity_exceeded", "jobs that need more than 24576 MiB of GPU memory"),
    ]


def test_what_bars_a_node_refuses_every_job_in_the_order_of_the_filters() -> None:
    record = node(
        status=NodeStatus.DEGRADED,
        reason_code=ReasonCode.HEALTH_CHECKS_FAILED,
        connection=None,
        cordoned="new fans",
        reported_jobs=4,
        usage=usage(cpu=95),
    )
    assert account(record) == [
        (
            "status_not_ready",
            "every job",
            "status ready",
            "degraded (health_checks_failed)",
            "3 more healthy beats in a row",
        ),
        ("disconnected", "every job", "a live connection", "none", "its agent connects and registers again"),
        (
            "cordoned",
            "every job",
            "a node that is not cordoned",
            "cordoned: new fans",
            "an operator lifts the cordon",
        ),
        (
            "capacity_exceeded",
            "every job",
            "a free place",
            "4 of 4 taken",
            "one of its jobs ends and its place is given back",
        ),
        (
            "resource_threshold_exceeded",
            "every job",
            "CPU use at most 90 %",
            "95 %",
            "a beat tells less use than that",
        ),
    ]


def test_a_node_in_doubt_is_back_with_its_next_beat() -> None:
    (doubt,) = account(node(suspected=True))
    assert doubt[0::4] == ("disconnected", "it beats again")


def test_a_private_node_refuses_public_jobs() -> None:
    (private,) = against(node())
    assert (private.reason, private.refuses) == (Exclusion.NOT_IN_PUBLIC_POOL, "public jobs")
    assert private.clears_when == "its agent sets accept_public_jobs"


def test_a_lost_gpu_is_an_objection_where_a_mig_parent_is_none() -> None:
    parent = gpu("p")
    parent.is_parent = True
    record = node(gpus=gpus(gpu("a"), gpu("b", health="lost"), parent))
    assert account(record) == [
        (
            "gpu_unavailable",
            "jobs that need more than 1 GPU, or GPUs that are no NVIDIA L4",
            "usable GPUs: 2",
            "1 (NVIDIA L4 ok, NVIDIA L4 lost, NVIDIA L4 MIG parent)",
            "the GPUs that are not usable recover",
        )
    ]
    record.gpus = gpus(gpu("a"), parent)
    assert account(record) == []
    assert limit(record, Exclusion.GPU_UNAVAILABLE).clears_when == "other GPUs are put in"


@pytest.mark.parametrize(
    ("installed", "have", "clears_when"),
    [
        (model("asr", status="downloading"), "downloading", "its download ends"),
        (model("asr", enabled=False), "disabled", "its agent enables it"),
        (model("asr", status="error"), "error", "the node reports it ready, now error"),
    ],
)
def test_an_installed_model_that_cannot_serve_is_named_with_its_state(
    installed: object, have: str, clears_when: str
) -> None:
    assert account(node(models=(installed,))) == [
        ("model_not_available", "jobs that need model asr", "model asr", have, clears_when)
    ]


def test_a_model_that_is_asked_for_is_named_even_when_it_is_not_there() -> None:
    assert account(node(), "asr") == [
        (
            "model_not_available",
            "jobs that need model asr",
            "model asr",
            "not installed",
            "it is installed there",
        )
    ]
    assert account(node(ready_models=frozenset({"asr"}), models=(model("asr"),)), "asr") == []


def test_no_node_names_more_models_than_a_person_would_read() -> None:
    record = node(models=tuple(model(f"m-{number}", status="error") for number in range(500)))
    assert len(account(record)) == objections.MOST_MODELS


def test_memory_that_claims_and_others_use_is_a_limit_that_passes() -> None:
    record = node(gpus=gpus(gpu("a", used_mb=4_576)))
    dispatch = dispatching(record)
    claimed(dispatch, job(min_gpu_memory_mb=10_000))
    view = dispatch.view("node-A")
    assert view is not None
    memory = list(objections.limits(view))[-1]
    assert (memory.refuses, memory.need, memory.have, memory.clears_when) == (
        "jobs that need more than 10000 MiB of GPU memory",
        "more than 10000 MiB free",
        "free: 10000 MiB",
        "jobs end and free it",
    )


def test_memory_of_empty_gpus_is_what_the_node_has() -> None:
    assert limit(node(), Exclusion.CAPACITY_EXCEEDED).clears_when == "larger GPUs are put in"
    bare = limit(node(gpus=gpus()), Exclusion.CAPACITY_EXCEEDED)
    assert (bare.refuses, bare.have) == ("jobs that state a need of GPU memory", "free: no GPU")
