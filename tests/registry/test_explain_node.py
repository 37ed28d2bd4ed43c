""""""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry import explain as objections
from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.filters import first_exclusion
from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.registry.explain import (
    EveryJob,
    JobsNotAllowed,
    JobsOfMoreGpus,
    JobsOfMoreMemory,
    JobsWithModel,
    JobsWithOtherFeatures,
    JobsWithOtherLabels,
    JobsWithOtherModels,
    ModelVersion,
    NodeExclusion,
    PublicJobs,
    Scope,
)
from gpu_agent.registry.job import Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.dispatch.nodes import claimed, dispatching, gpu, gpus, job, node, usage
from tests.registry.dispatch.nodes import model as nodes_model
from tests.registry.dispatch.random_fleet import MODELS, random_job, random_node
from tests.registry.harness import Registry, figures, model


def test_a_node_that_takes_jobs_has_limits_only() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    account = registry.fleet.why("node-1", registry.now)
    assert account is not None
    assert (account.node_id, account.objections, account.model) == ("node-1", (), None)
    assert len(account.limits) == 6
    assert not account.refuses_every_job


def test_a_node_that_is_degraded_says_what_would_clear_it() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    registry.beat(gpus=figures(health="lost", reasons=("xid_79",)))
    account = registry.fleet.why("node-1", registry.now)
    assert account is not None
    status, gpu = account.objections
    assert (status.reason, status.have) == ("status_not_ready", "degraded (gpu_unavailable)")
    assert status.clears_when.startswith("3 more healthy beats in a row; failing now: gpus")
    assert gpu.reason == "gpu_unavailable"
    assert account.refuses_every_job


def test_the_state_of_one_model_is_told_version_by_version() -> None:
    registry = Registry()
    versions = (model("m", status="downloading"), model("m", enabled=False))
    registry.register(installed_models=versions, capability_state={"m": "error"})
    account = registry.fleet.why("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (False, "error", "error")
    assert account.model.versions == (
        ModelVersion(version="1", enabled=True, status="downloading"),
        ModelVersion(version="1", enabled=False, status="ready"),
    )


def test_a_model_that_is_ready_is_told_so() -> None:
    registry = Registry()
    registry.ready(installed_models=(model("m"),))
    account = registry.fleet.why("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (True, "ready", None)


def test_nothing_is_said_of_a_node_that_is_not_known() -> None:
    registry = Registry()
    assert registry.fleet.why("node-9", registry.now) is None


def view_of(record: NodeRecord) -> Candidate:
    return Candidate(record, 0, Thresholds())


def against(record: NodeRecord, asked: str | None = None) -> list[NodeExclusion]:
    return list(objections.exclusions(view_of(record), 0.0, asked))


def account(record: NodeRecord, asked: str | None = None) -> list[tuple[str, str, str, str, str]]:
    return [
        (one.reason.value, one.refuses, one.need, one.have, one.clears_when)
        for one in against(record, asked)
        if one.reason is not ExclusionReason.NOT_IN_PUBLIC_POOL
    ]


def limit(record: NodeRecord, reason: ExclusionReason) -> NodeExclusion:
    (found,) = [one for one in objections.limits(view_of(record)) if one.reason is reason]
    return found


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_job_is_refused_by_the_filters_just_when_an_objection_or_a_limit_covers_it(dice: Random) -> None:
    record = random_node(dice, "node-A")
    record.models = tuple(nodes_model(one) for one in MODELS if dice.random() < 1 / 2)
    dispatch = Dispatch(Thresholds(), lambda: 0.0)
    dispatch.refresh(record)
    dispatch.claim(random_job(dice), 0.0)
    view = dispatch.view("node-A")
    assert view is not None
    found = [*objections.exclusions(view, 0.0, dice.choice((None, "asr"))), *objections.limits(view)]
    for _ in range(30):
        demand = Demand.of(random_job(dice))
        covering = {one.reason for one in found if one.scope.covers(demand)}
        refused = first_exclusion(view, demand)
        if refused is None:
            assert covering == set()
        else:
            assert refused.reason in covering


def test_a_node_that_is_well_has_no_objection_and_tells_what_it_is() -> None:
    record = node(accept_public_jobs=True, ready_models=frozenset({"asr"}), models=(nodes_model("asr"),))
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
    (doubt,) = account(node(suspected_until=9.0))
    assert doubt[0::4] == ("disconnected", "it beats again")


def test_a_private_node_refuses_public_jobs() -> None:
    (private,) = against(node())
    assert (private.reason, private.refuses) == (ExclusionReason.NOT_IN_PUBLIC_POOL, "public jobs")
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
    assert limit(record, ExclusionReason.GPU_UNAVAILABLE).clears_when == "other GPUs are put in"


@pytest.mark.parametrize(
    ("installed", "have", "clears_when"),
    [
        (nodes_model("asr", status="downloading"), "downloading", "its download ends"),
        (nodes_model("asr", enabled=False), "disabled", "its agent enables it"),
        (nodes_model("asr", status="error"), "error", "the node reports it ready, now error"),
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
    assert account(node(ready_models=frozenset({"asr"}), models=(nodes_model("asr"),)), "asr") == []


def test_no_node_names_more_models_than_a_person_would_read() -> None:
    record = node(models=tuple(nodes_model(f"m-{number}", status="error") for number in range(500)))
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
    assert limit(node(), ExclusionReason.CAPACITY_EXCEEDED).clears_when == "larger GPUs are put in"
    bare = limit(node(gpus=gpus()), ExclusionReason.CAPACITY_EXCEEDED)
    assert (bare.refuses, bare.have) == ("jobs that state a need of GPU memory", "free: no GPU")


L4S = JobsOfMoreGpus((("NVIDIA L4", 2),))
MEMORY = JobsOfMoreMemory((("NVIDIA L4", 20_000), ("NVIDIA H100", 9_000), ("NVIDIA H100", None)))


@pytest.mark.parametrize(
    ("scope", "covered", "passing"),
    [
        (EveryJob(), [job()], []),
        (
            JobsNotAllowed("node-A"),
            [job(allowed_nodes=("node-B",)), job(allowed_nodes=())],
            [job(), job(allowed_nodes=("node-A",))],
        ),
        (PublicJobs(), [job(public=True)], [job()]),
        (L4S, [job(gpu_count=3), job(gpu_name="h100")], [job(gpu_count=2, gpu_name="l4"), job(gpu_count=0)]),
        (JobsWithModel("asr"), [job(required_models=("nmt", "asr"))], [job(required_models=("nmt",)), job()]),
        (JobsWithOtherModels(frozenset({"asr"})), [job(required_models=("asr", "nmt"))], [job()]),
        (JobsWithOtherFeatures(frozenset({"f"})), [job(required_features=("g",))], [job()]),
        (
            JobsWithOtherLabels({"zone": "a"}),
            [job(labels={"zone": "b"}), job(labels={"rack": "1"})],
            [job(), job(labels={"zone": "a"})],
        ),
        (
            MEMORY,
            [
                job(min_gpu_memory_mb=20_001),
                job(min_gpu_memory_mb=9_001, gpu_count=2),
                job(min_gpu_memory_mb=9_001, gpu_name="H100"),
            ],
            [job(), job(min_gpu_memory_mb=20_000), job(min_gpu_memory_mb=9_000, gpu_count=2)],
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_a_scope_covers_what_its_words_say(scope: Scope, covered: list[Job], passing: list[Job]) -> None:
    assert all(scope.covers(Demand.of(one)) for one in covered)
    assert not any(scope.covers(Demand.of(one)) for one in passing)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        (EveryJob(), "every job"),
        (JobsNotAllowed("node-A"), "jobs whose allowed_nodes leave it out"),
        (PublicJobs(), "public jobs"),
        (L4S, "jobs that need more than 2 GPUs, or GPUs that are no NVIDIA L4"),
        (JobsOfMoreGpus(()), "jobs that need more than 0 GPUs"),
        (JobsOfMoreGpus((("T4", 1),)), "jobs that need more than 1 GPU, or GPUs that are no T4"),
        (
            JobsOfMoreGpus((("H100", 1), ("L4", 2))),
            "jobs that need more than 3 GPUs (1 H100, 2 L4), or GPUs of another name",
        ),
        (JobsWithModel("asr"), "jobs that need model asr"),
        (JobsWithOtherModels(frozenset("ba")), "jobs that need any model but a, b"),
        (JobsWithOtherModels(frozenset()), "jobs that need a model"),
        (JobsWithOtherFeatures(frozenset("f")), "jobs that need any feature but f"),
        (JobsWithOtherFeatures(frozenset()), "jobs that need a feature"),
        (JobsWithOtherLabels({"zone": "a"}), "jobs that ask for any label but zone=a"),
        (JobsWithOtherLabels({}), "jobs that ask for a label"),
        (MEMORY, "jobs that need more than 20000 MiB of GPU memory (on each of 2: 9000)"),
        (JobsOfMoreMemory((("L4", -7),)), "jobs that need more than 0 MiB of GPU memory"),
        (JobsOfMoreMemory((("L4", None),)), "jobs that state a need of GPU memory"),
    ],
    ids=str,
)
def test_a_scope_reads_as_words(scope: Scope, words: str) -> None:
    assert str(scope) == words
