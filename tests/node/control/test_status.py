from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.node.control.status import MAX_MODELS, is_ready
from gpu_agent.node.jobs import AnnouncedJob, of_process
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.session.types import State
from gpu_agent.wire.control import StatusDocument
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.node.control_harness import INVENTORY, READY, jobs_in_flight, snapshot, status_of


def test_instants_become_times_and_ages() -> None:
    session = status_of()["session"]
    assert session["since"] == 4910.0
    assert (session["last_heartbeat_at"], session["last_heartbeat_age_seconds"]) == (4930.0, 70.0)


def test_a_ready_node_reports_its_status_with_its_age() -> None:
    document = status_of()
    assert (document["connected"], document["ready"], document["node_id"]) == (True, True, "node-A")
    status = document["status"]
    assert (status["status"], status["current"], status["received_age_seconds"]) == ("ready", True, 80.0)


def test_while_the_registry_is_away_its_last_status_is_not_current() -> None:
    document = status_of(state=State.BACKING_OFF, next_attempt_at=103.0, last_refusal="connection refused")
    assert (document["connected"], document["ready"]) == (False, False)
    session, status = document["session"], document["status"]
    assert (session["next_attempt_in_seconds"], session["why"]) == (3.0, "connection refused")
    assert (status["status"], status["current"]) == ("ready", False)


def test_before_anything_is_known_everything_is_null() -> None:
    document = status_of(
        state=State.WAITING_GPU,
        node_id=None,
        registry_status=None,
        inventory=None,
        state_since=None,
        last_heartbeat_at=None,
    )
    assert (document["node_id"], document["status"], document["machine"]) == (None, None, None)
    session = document["session"]
    assert (session["since"], session["last_heartbeat_at"], session["next_attempt_at"]) == (None, None, None)


def test_the_owners_drain_is_reported_with_the_time_that_is_left() -> None:
    assert status_of()["drain"] is None
    drain = status_of(drain_reason="new fans", drain_until=160.0)["drain"]
    assert drain == {
        "reason": "new fans",
        "over": False,
        "deadline_at": 5060.0,
        "deadline_in_seconds": 60.0,
    }
    over = status_of(drain_reason="new fans", drain_until=90.0, state=State.DRAINED)["drain"]
    assert (over["over"], over["deadline_in_seconds"]) == (True, 0.0)


def test_a_leaving_node_is_ready_and_a_degraded_one_is_not() -> None:
    assert is_ready(snapshot(state=State.LEAVING))
    assert not is_ready(snapshot(registry_status=READY.model_copy(update={"status": "degraded"})))


def test_the_limits_that_pause_public_jobs_are_reported() -> None:
    assert status_of()["accept_public_jobs"] is True
    hot = PublicJobsState(wanted=True, pauses=(Pause(Limit.TEMPERATURE, "too hot"),))
    document = status_of(public_jobs=hot)
    assert document["accept_public_jobs"] is False
    assert document["public_jobs"] == {
        "wanted": True,
        "pauses": [{"limit": "max_temperature_c", "detail": "too hot"}],
    }


def test_of_very_many_models_those_that_cannot_serve_are_listed_first() -> None:
    models = [Model(model_id=f"m{number}", version="1") for number in range(MAX_MODELS + 5)]
    broken = Model(model_id="broken", version="1", status=ModelStatus.ERROR)
    inventory = replace(INVENTORY, models=(*models, broken))
    machine = status_of(inventory=inventory)["machine"]
    assert (len(machine["models"]), machine["models_found"]) == (MAX_MODELS, MAX_MODELS + 6)
    assert machine["models"][0]["model_id"] == "broken"


@pytest.mark.parametrize(
    "fields", [{}, {"inventory": None, "registry_status": None}, {"drain_reason": "fans"}]
)
def test_a_reader_parses_what_the_agent_writes(fields: dict[str, Any]) -> None:
    written = status_of(jobs_in_flight(AnnouncedJob("job-1", of_process(7, 70), 0, 1.0)), **fields)
    assert StatusDocument.model_validate(written).model_dump(by_alias=True, mode="json") == written


def test_a_reader_ignores_fields_of_a_newer_agent() -> None:
    newer = {**status_of(), "colour": "blue"}
    assert StatusDocument.model_validate(newer) == StatusDocument.model_validate(status_of())
