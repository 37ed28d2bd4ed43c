"""Bodies of requests: what they may hold, and what is refused."""

import pytest
from pydantic import ValidationError

from gpu_agent.registry.job import Job
from gpu_agent.server.api.claims import job_of
from gpu_agent.wire.api import DrainRequest, DryRunRequest, JobRequest


def test_a_job_can_have_every_demand_that_dispatch_knows() -> None:
    demands = {
        "job_id": "job-1",
        "required_models": ["a"],
        "required_features": ["f"],
        "public": True,
        "gpu_count": 2,
        "gpu_name": "H100",
        "min_gpu_memory_mb": 1024,
        "labels": {"zone": "a"},
        "allowed_nodes": ["node-1"],
        "affinity_key": "k",
        "priority": 3,
    }
    assert job_of(JobRequest.model_validate(demands)) == Job(
        job_id="job-1",
        required_models=("a",),
        required_features=("f",),
        public=True,
        gpu_count=2,
        gpu_name="H100",
        min_gpu_memory_mb=1024,
        labels={"zone": "a"},
        allowed_nodes=("node-1",),
        affinity_key="k",
        priority=3,
    )


def test_a_demand_left_out_is_no_demand() -> None:
    assert job_of(JobRequest(job_id="job-1")) == Job(job_id="job-1")
    assert job_of(DryRunRequest()) == Job(job_id="dry-run")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"job_id": ""},
        {"job_id": "j", "gpu_count": 0},
        {"job_id": "j", "gpu_countt": 8},
        {"job_id": "j", "min_gpu_memory_mb": -1},
        {"job_id": "j", "labels": {"zone": 1}},
    ],
)
def test_a_wrong_or_unknown_demand_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JobRequest.model_validate(wrong)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_drain_deadline_must_be_a_finite_span(seconds: float) -> None:
    assert DrainRequest().deadline_seconds is None
    with pytest.raises(ValidationError):
        DrainRequest(deadline_seconds=seconds)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert JobRequest.model_validate({"job_id": "j", "gpu_count": 2.0}).gpu_count == 2
