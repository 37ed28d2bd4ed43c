import time

import pytest

from gpu_agent.cli.asking.api import Problem
from gpu_agent.cli.demo.fleet import running_fleet
from gpu_agent.cli.demo.walk import JOB, Walk
from gpu_agent.cli.outcome import Failure


def test_the_walk_goes_through_the_main_job_and_times_each_step() -> None:
    said: list[str] = []
    with running_fleet() as fleet:
        Walk(fleet, said.append, started=time.monotonic()).all_steps()
        statuses = [node["status"] for node in fleet.api.get("/v1/nodes")["nodes"]]
    assert sorted(statuses) == ["offline", "ready", "ready"]
    steps = [line for line in said if line.startswith("[")]
    assert [line for line in steps if "ready" in line or "claimed" in line or "drain" in line]
    assert steps[-1].endswith("done")


def test_a_step_that_goes_wrong_ends_the_walk_with_its_reason() -> None:
    with running_fleet() as fleet:
        fleet.await_(
            lambda: [n for n in fleet.api.get("/v1/nodes")["nodes"] if n["status"] == "ready"][2:] or None,
            seconds=20,
            what="three ready nodes",
        )
        places = (fleet.api.attempt("POST", "/v1/claims", {"job_id": f"other-{n}"}) for n in range(100))
        assert any(isinstance(answer, Problem) for answer in places), "the fleet must be full"
        with pytest.raises(Failure, match="no node can take this job"):
            Walk(fleet, lambda _: None, started=time.monotonic()).all_steps()
        assert JOB not in str(fleet.api.get("/v1/nodes"))
