from dataclasses import replace

import pytest

from gpu_agent.node.jobs import AnnouncedJob, Jobs, WorkerProcess
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.probe.health.reasons import reason
from gpu_agent.session.types import State
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import GpuReport, Health, HealthReason, Model, ModelStatus, Outcome
from gpu_agent.wire.messages import StatusDetails
from tests.node.control_harness import GPU, HOST, INVENTORY, READY, jobs_in_flight, why_of

LOST = replace(
    GPU,
    health=Health.LOST,
    reasons=(HealthReason(code="gpu_lost", detail="it has fallen off the bus", action="reboot"),),
)

KNOWN_TO_THE_REGISTRY_ONLY = {
    ExclusionReason.CORDONED,
    ExclusionReason.NOT_ALLOWED,
    ExclusionReason.FEATURE_NOT_SUPPORTED,
    ExclusionReason.LABEL_MISMATCH,
    ExclusionReason.RESOURCE_THRESHOLD_EXCEEDED,
}
"""A cordon and the limits on load are the registry's; nodes, features and labels are what a job asks for."""


def jobs_of(count: int | None) -> Jobs | None:
    if count is None:
        return None
    jobs = jobs_in_flight(AnnouncedJob("first", WorkerProcess("w"), 0, 1.0))
    jobs.finish("first")
    for number in range(count):
        jobs.start(f"job-{number}", WorkerProcess("w"), uid=0, now=1.0)
    return jobs


def excluded_for(count: int | None = None, **fields: object) -> list[tuple[str, str]]:
    return [(one["reason"], one["refuses"]) for one in why_of(jobs_of(count), **fields)["exclusions"]]


def test_a_healthy_node_has_no_objection_and_names_what_only_the_registry_knows() -> None:
    document = why_of()
    assert (document["exclusions"], document["refuses_every_job"]) == ([], False)
    assert document["ask"] == "gpu-agent registry explain node node-A"
    assert any("cordoned" in one for one in document["only_the_registry_knows"])


@pytest.mark.parametrize(
    "state",
    sorted(set(State) - {State.REGISTERED, State.LEAVING}),
    ids=lambda state: state.value,
)
def test_without_a_session_every_job_is_refused_whatever_the_last_status(state: State) -> None:
    assert excluded_for(state=state) == [("disconnected", "every job")]


def test_a_node_that_backs_off_says_how_long_and_why() -> None:
    (one,) = why_of(state=State.BACKING_OFF, next_attempt_at=103.0, last_refusal="refused")["exclusions"]
    assert one["have"] == "it waits to try again: refused"
    assert one["clears_when"] == "it is connected; it tries again in 3 s"


def test_the_registrys_reason_comes_with_what_would_clear_it() -> None:
    degraded = READY.model_copy(
        update={
            "status": "degraded",
            "reason": "a model is missing",
            "reason_code": "model_missing",
            "details": StatusDetails(clears_when="it is back"),
        }
    )
    (one,) = why_of(registry_status=degraded)["exclusions"]
    assert one["have"] == "degraded (model_missing): a model is missing"
    assert one["clears_when"] == "it is back"


def test_before_the_first_status_that_is_the_reason() -> None:
    (one,) = why_of(registry_status=None)["exclusions"]
    assert one["have"] == "no status yet"


def test_the_owners_drain_is_named_as_one() -> None:
    (one,) = why_of(drain_reason="new fans", drain_until=160.0)["exclusions"]
    assert one["have"] == "a drain by its owner: new fans"
    assert one["clears_when"] == "`gpu-agent resume`"


def test_public_jobs_alone_are_refused_where_the_owner_does_not_accept_them() -> None:
    assert excluded_for(public_jobs=PublicJobsState(wanted=False)) == [("not_in_public_pool", "public jobs")]


def test_a_limit_that_pauses_public_jobs_comes_with_its_figures() -> None:
    hot = PublicJobsState(wanted=True, pauses=(Pause(Limit.TEMPERATURE, "GPU 0 has 90 C, may have 80"),))
    (one,) = why_of(public_jobs=hot)["exclusions"]
    assert (one["refuses"], one["have"]) == ("public jobs", "a pause: GPU 0 has 90 C, may have 80")


@pytest.mark.parametrize(
    ("jobs", "slots", "full"), [(None, 2, False), (1, 2, False), (2, 2, True), (3, 2, True), (None, 0, True)]
)
def test_a_node_without_a_free_slot_takes_no_job(jobs: int | None, slots: int, full: bool) -> None:  # noqa: FBT001 - a table
    found = excluded_for(jobs, owner=Owner(accept_public_jobs=True, max_concurrent_jobs=slots))
    assert found == ([("capacity_exceeded", "every job")] if full else [])


def test_each_gpu_that_cannot_be_used_has_its_reason_and_next_step() -> None:
    inventory = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK, gpus=(GPU, replace(LOST, index=1))))
    (one,) = why_of(inventory=inventory)["exclusions"]
    assert (one["refuses"], one["have"]) == ("jobs on GPU 1", "lost: it has fallen off the bus (gpu_lost)")
    assert one["clears_when"] == "it is repaired: drain the node, then reboot it"


@pytest.mark.parametrize(
    ("code", "refuses"),
    [
        ("xid_48", "new jobs on GPU 0"),
        ("fabric_incomplete", "jobs of several GPUs on GPU 0"),
    ],
)
def test_a_degraded_gpu_that_takes_only_some_jobs_names_the_others(code: str, refuses: str) -> None:
    limited = replace(GPU, health=Health.DEGRADED, reasons=(reason(code),))
    inventory = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK, gpus=(limited,)))
    (one,) = why_of(inventory=inventory)["exclusions"]
    assert one["refuses"] == refuses
    assert code in one["have"]


def test_without_any_usable_gpu_every_job_is_refused() -> None:
    unwell = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK, gpus=(LOST,)))
    assert excluded_for(inventory=unwell) == [
        ("gpu_unavailable", "every job"),
        ("gpu_unavailable", "jobs on GPU 0"),
    ]
    broken = GpuReport(outcome=Outcome.DRIVER_BROKEN, detail="NVML does not answer: reboot.")
    (one,) = why_of(inventory=replace(INVENTORY, gpu=broken))["exclusions"]
    assert one["have"] == "NVML does not answer: reboot."
    assert excluded_for(inventory=None) == [("gpu_unavailable", "every job")]


def test_models_that_are_not_ready_refuse_the_jobs_that_ask_for_them() -> None:
    models = (
        Model(model_id="good", version="1"),
        Model(model_id="off", version="1", enabled=False),
        Model(model_id="bad", version="2", status=ModelStatus.ERROR, detail="a shard is missing"),
    )
    found = why_of(inventory=replace(INVENTORY, models=models))["exclusions"]
    assert [(one["refuses"], one["have"]) for one in found] == [
        ("jobs that ask for off", "disabled"),
        ("jobs that ask for bad", "error: a shard is missing"),
    ]


def test_a_busy_machine_is_not_judged_by_a_limit_that_only_the_registry_knows() -> None:
    busy = why_of(inventory=replace(INVENTORY, host=replace(HOST, cpu_percent=97.0)))
    assert (busy["exclusions"], busy["refuses_every_job"]) == ([], False)
    assert any("(90 % of CPU or memory by default)" in one for one in busy["only_the_registry_knows"])


def test_each_reason_is_explained_here_or_known_to_the_registry_only() -> None:
    documents = [
        why_of(
            jobs_of(5),
            registry_status=None,
            owner=Owner(max_concurrent_jobs=1),
            public_jobs=PublicJobsState(wanted=False),
            inventory=replace(
                INVENTORY,
                gpu=GpuReport(outcome=Outcome.OK, gpus=(LOST,)),
                models=(Model(model_id="off", version="1", enabled=False),),
            ),
        ),
        why_of(state=State.BACKING_OFF),
    ]
    explained = {one["reason"] for document in documents for one in document["exclusions"]}
    assert explained.isdisjoint(KNOWN_TO_THE_REGISTRY_ONLY)
    assert explained | KNOWN_TO_THE_REGISTRY_ONLY == set(ExclusionReason)
