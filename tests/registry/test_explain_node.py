"""Explain a node: its exclusions and limits name just the jobs that the filters exclude."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.declared_filters import MOST_MODELS
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.explain import explain_node
from gpu_agent.registry.dispatch.filters import first_exclusion
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire import api
from gpu_agent.wire.api import ModelVersion, NodeExplanation
from gpu_agent.wire.codes import ExclusionReason, NodeStatus, ReasonCode
from tests.registry.dispatch.nodes import (
    candidate_of,
    change,
    claimed,
    dispatching,
    gpu,
    gpus,
    job,
    node,
    usage,
)
from tests.registry.dispatch.nodes import model as installed_model
from tests.registry.dispatch.random_fleet import MODELS, random_job, random_node
from tests.registry.harness import Registry, figures, model


def test_a_node_that_takes_jobs_has_limits_only() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    account = registry.fleet.explain_node("node-1", registry.now)
    assert account is not None
    assert (account.node_id, account.exclusions, account.model) == ("node-1", (), None)
    assert len(account.limits) == 6
    assert not account.refuses_every_job


def test_a_node_that_is_degraded_says_what_would_clear_it() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    registry.heartbeat(gpus=figures(health="lost", reasons=("xid_79",)))
    account = registry.fleet.explain_node("node-1", registry.now)
    assert account is not None
    status, gpu = account.exclusions
    assert (status.reason, status.have) == ("status_not_ready", "status degraded (gpu_unavailable)")
    assert status.clears_when.startswith("3 more healthy heartbeats in a row; failing now: gpus")
    assert gpu.reason == "gpu_unavailable"
    assert account.refuses_every_job


def test_the_state_of_one_model_is_shown_version_by_version() -> None:
    registry = Registry()
    versions = (model("m", status="downloading"), model("m", enabled=False))
    registry.register(installed_models=versions, capability_state={"m": "error"})
    account = registry.fleet.explain_node("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (False, "error", "error")
    assert account.model.versions == (
        ModelVersion(version="1", enabled=True, status="downloading"),
        ModelVersion(version="1", enabled=False, status="ready"),
    )


def test_a_model_that_is_ready_is_shown_so() -> None:
    registry = Registry()
    registry.ready(installed_models=(model("m"),))
    account = registry.fleet.explain_node("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (True, "ready", None)


def test_nothing_is_said_of_a_node_that_is_not_known() -> None:
    registry = Registry()
    assert registry.fleet.explain_node("node-9", registry.now) is None


def explained(record: NodeRecord, model: str | None = None) -> NodeExplanation:
    return explain_node(candidate_of(record), 0.0, model)


def account(record: NodeRecord, asked: str | None = None) -> list[tuple[str, str, str, str, str]]:
    return [
        (one.reason, one.refuses, one.need, one.have, one.clears_when)
        for one in explained(record, asked).exclusions
        if one.reason != ExclusionReason.NOT_IN_PUBLIC_POOL
    ]


def limit(record: NodeRecord, reason: ExclusionReason) -> api.NodeExclusionView:
    (found,) = [one for one in explained(record).limits if one.reason == reason]
    return found


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_filter_excludes_a_node_from_a_job_only_where_the_node_s_explanation_names_it(dice: Random) -> None:
    record = random_node(dice, "node-A")
    change(record, installed_models=tuple(installed_model(one) for one in MODELS if dice.random() < 1 / 2))
    dispatch = Dispatch(Thresholds(), lambda: 0.0)
    dispatch.update(record)
    dispatch.claim(random_job(dice), 0.0, claim_id="c", owner=None)
    candidate = dispatch._index.candidates["node-A"]
    found = explain_node(candidate, 0.0, dice.choice((None, "asr")))
    reasons = {one.reason for one in (*found.exclusions, *found.limits)}
    named = {one.refuses for one in found.exclusions}
    for _ in range(30):
        wanted = random_job(dice)
        excluded = first_exclusion(candidate, Demand.of(wanted))
        if excluded is not None:
            assert excluded.reason in reasons
            continue
        assert "every job" not in named
        assert named.isdisjoint(f"jobs that need model {model}" for model in wanted.required_models)
        assert not wanted.public or "public jobs" not in named


def test_a_healthy_node_has_no_exclusion_and_its_limits() -> None:
    record = node(
        accept_public_jobs=True, ready_models=frozenset({"asr"}), installed_models=(installed_model("asr"),)
    )
    assert explained(record).exclusions == ()
    assert [(one.reason, one.refuses) for one in explained(record).limits] == [
        ("not_allowed", "jobs whose allowed_nodes leave it out, or whose excluded_nodes name it"),
        ("gpu_unavailable", "jobs that need more than 1 GPU, or GPUs other than NVIDIA L4"),
        ("model_not_available", "jobs that need a model other than asr"),
        ("feature_not_supported", "jobs that need a feature"),
        ("label_mismatch", "jobs that ask for a label"),
        ("capacity_exceeded", "jobs that share more than 24576 MiB of GPU memory"),
    ]


def test_what_makes_a_node_unschedulable_excludes_every_job_in_the_order_of_the_filters() -> None:
    record = node(
        status=NodeStatus.DEGRADED,
        reason_code=ReasonCode.HEALTH_CHECKS_FAILED,
        connection=None,
        cordoned="new fans",
        count=4,
        usage=usage(cpu=95),
    )
    assert account(record) == [
        (
            "status_not_ready",
            "every job",
            "a ready node",
            "status degraded (health_checks_failed)",
            "3 more healthy heartbeats in a row",
        ),
        (
            "disconnected",
            "every job",
            "a connected node",
            "no connection",
            "its agent connects and registers again",
        ),
        (
            "cordoned",
            "every job",
            "a node that is not cordoned",
            "a cordon: new fans",
            "an operator lifts the cordon",
        ),
        (
            "capacity_exceeded",
            "every job",
            "a free slot",
            "4 of 4 taken",
            "one of its jobs ends and its slot is free again",
        ),
        (
            "resource_threshold_exceeded",
            "every job",
            "CPU use of at most 90 %",
            "95 %",
            "a heartbeat reports less use than that",
        ),
    ]


def test_a_suspected_node_is_back_with_its_next_heartbeat() -> None:
    (doubt,) = account(node(suspected_until=9.0))
    assert doubt[0::4] == ("disconnected", "it sends a heartbeat")


def test_a_private_node_refuses_public_jobs() -> None:
    (private,) = explained(node()).exclusions
    assert (private.reason, private.refuses) == (ExclusionReason.NOT_IN_PUBLIC_POOL, "public jobs")
    assert private.clears_when == "its agent sets accept_public_jobs"


def test_a_lost_gpu_is_an_exclusion_where_a_mig_parent_is_none() -> None:
    parent = gpu("p")
    parent.is_parent = True
    record = node(gpus=gpus(gpu("a"), gpu("b", health="lost"), parent))
    assert account(record) == [
        (
            "gpu_unavailable",
            "jobs that need more than 1 GPU, or GPUs other than NVIDIA L4",
            "2 usable GPUs",
            "1 (NVIDIA L4: 1 ok and 1 lost)",
            "the GPUs that are not usable recover",
        )
    ]
    record.gpus = gpus(gpu("a"), parent)
    assert account(record) == []
    assert limit(record, ExclusionReason.GPU_UNAVAILABLE).clears_when == "other GPUs are put in"


@pytest.mark.parametrize(
    ("installed", "have", "clears_when"),
    [
        (installed_model("asr", status="downloading"), "downloading", "its download ends"),
        (installed_model("asr", enabled=False), "disabled", "its agent enables it"),
        (installed_model("asr", status="error"), "error", "the node reports it ready, now error"),
    ],
)
def test_an_installed_model_that_cannot_serve_is_named_with_its_state(
    installed: object, have: str, clears_when: str
) -> None:
    assert account(node(installed_models=(installed,))) == [
        (
            "model_not_available",
            "jobs that need model asr",
            "model asr",
            f"no ready version of it: {have}",
            clears_when,
        )
    ]


def test_a_model_that_is_requested_is_named_even_when_it_is_not_there() -> None:
    assert account(node(), "asr") == [
        (
            "model_not_available",
            "jobs that need model asr",
            "model asr",
            "no ready version of it: not installed",
            "it is installed there",
        )
    ]
    assert (
        account(node(ready_models=frozenset({"asr"}), installed_models=(installed_model("asr"),)), "asr")
        == []
    )


def test_no_node_names_more_models_than_a_person_would_read() -> None:
    record = node(
        installed_models=tuple(installed_model(f"m-{number}", status="error") for number in range(500))
    )
    assert len(account(record)) == MOST_MODELS


def test_memory_that_claims_and_others_use_is_a_limit_that_passes() -> None:
    record = node(gpus=gpus(gpu("a", used_mb=4_576)))
    dispatch = dispatching(record)
    claimed(dispatch, job(min_gpu_memory_mb=10_000))
    explanation = dispatch.explain_node("node-A", 0.0)
    assert explanation is not None
    memory = explanation.limits[-1]
    assert (memory.refuses, memory.need, memory.have, memory.clears_when) == (
        "jobs that share more than 10000 MiB of GPU memory",
        "more than 10000 MiB free",
        "10000 MiB at most",
        "jobs end and free it",
    )


def test_memory_of_empty_gpus_is_what_the_node_has() -> None:
    assert limit(node(), ExclusionReason.CAPACITY_EXCEEDED).clears_when == "larger GPUs are put in"
    bare = limit(node(gpus=gpus()), ExclusionReason.CAPACITY_EXCEEDED)
    assert (bare.refuses, bare.have) == ("jobs that share GPU memory", "no such GPU")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"gpus": gpus(gpu("a"), gpu("b"))},
            "jobs that need more than 2 GPUs, or GPUs other than NVIDIA L4",
        ),
        ({"gpus": gpus()}, "jobs that need GPUs"),
        ({"gpus": gpus(gpu("a", name="T4"))}, "jobs that need more than 1 GPU, or GPUs other than T4"),
        (
            {"gpus": gpus(gpu("a", name="L4"), gpu("b", name="H100"), gpu("c", name="L4"))},
            "jobs that need more than 3 GPUs (1 H100, 2 L4), or GPUs of another name",
        ),
        ({"ready_models": frozenset("ba")}, "jobs that need a model other than a, b"),
        ({}, "jobs that need a model"),
        ({"features": frozenset("f")}, "jobs that need a feature other than f"),
        ({}, "jobs that need a feature"),
        ({"labels": {"zone": "a"}}, "jobs that ask for a label other than zone=a"),
        ({}, "jobs that ask for a label"),
        (
            {"gpus": gpus(gpu("a", memory_mb=20_000), gpu("b", memory_mb=9_000), gpu("c", memory_mb=None))},
            "jobs that share more than 20000 MiB of GPU memory (9000 on each of 2)",
        ),
        (
            {"gpus": gpus(gpu("a", memory_mb=100, used_mb=200))},
            "jobs that share more than 0 MiB of GPU memory",
        ),
        ({"gpus": gpus(gpu("a", memory_mb=None))}, "jobs that share GPU memory"),
    ],
    ids=lambda one: one if isinstance(one, str) else "node",
)
def test_a_limit_names_the_jobs_that_it_excludes(facts: dict[str, Any], words: str) -> None:
    assert words in [one.refuses for one in explained(node(**facts)).limits]
