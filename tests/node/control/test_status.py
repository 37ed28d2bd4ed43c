import json
from dataclasses import replace

from gpu_agent.node.control.status import MOST_MODELS, Instant, is_ready, status_document
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.session.types import State
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.node.control_harness import INVENTORY, READY, snapshot

NOW = Instant(monotonic=100.0, wall=5000.0)


def told(**more: object) -> dict[str, object]:
    document = status_document(snapshot(**more), [], announced=False, started_at=4000.0, moment=NOW)
    return dict(json.loads(json.dumps(document)))  # it is to be sent


def test_instants_become_times_and_ages() -> None:
    session = told()["session"]
    assert isinstance(session, dict)
    assert session["since"] == 4910.0
    assert (session["last_heartbeat_at"], session["last_heartbeat_age_seconds"]) == (4930.0, 70.0)


def test_a_ready_node_says_so_and_why_it_thinks_so() -> None:
    document = told()
    assert (document["connected"], document["ready"], document["node_id"]) == (True, True, "node-A")
    verdict = document["status"]
    assert isinstance(verdict, dict)
    assert (verdict["status"], verdict["current"], verdict["received_age_seconds"]) == ("ready", True, 80.0)


def test_while_the_registry_is_away_its_last_word_is_told_as_an_old_one() -> None:
    document = told(state=State.BACKING_OFF, next_attempt_at=103.0, last_refusal="connection refused")
    assert (document["connected"], document["ready"]) == (False, False)
    session, verdict = document["session"], document["status"]
    assert isinstance(session, dict)
    assert isinstance(verdict, dict)
    assert (session["next_attempt_in_seconds"], session["why"]) == (3.0, "connection refused")
    assert (verdict["status"], verdict["current"]) == ("ready", False)


def test_before_anything_is_known_everything_is_null() -> None:
    document = told(
        state=State.WAITING_GPU,
        node_id=None,
        registry_status=None,
        inventory=None,
        state_since=None,
        last_heartbeat_at=None,
    )
    assert (document["node_id"], document["status"], document["machine"]) == (None, None, None)
    session = document["session"]
    assert isinstance(session, dict)
    assert (session["since"], session["last_heartbeat_at"], session["next_attempt_at"]) == (None, None, None)


def test_a_drain_of_the_owner_is_told_with_what_is_left_of_it() -> None:
    assert told()["drain"] is None
    drain = told(drain_reason="new fans", drain_until=160.0)["drain"]
    assert drain == {
        "reason": "new fans",
        "over": False,
        "deadline_at": 5060.0,
        "deadline_in_seconds": 60.0,
    }
    over = told(drain_reason="new fans", drain_until=90.0, state=State.DRAINED)["drain"]
    assert isinstance(over, dict)
    assert (over["over"], over["deadline_in_seconds"]) == (True, 0.0)


def test_a_leaving_node_is_heard_and_one_that_is_degraded_is_not_ready() -> None:
    assert is_ready(snapshot(state=State.LEAVING))
    assert not is_ready(snapshot(registry_status=READY.model_copy(update={"status": "degraded"})))


def test_what_keeps_public_jobs_out_is_told() -> None:
    assert told()["accept_public_jobs"] is True
    hot = PublicJobsState(wanted=True, pauses=(Pause(Limit.TEMPERATURE, "too hot"),))
    document = told(public_jobs=hot)
    assert document["accept_public_jobs"] is False
    assert document["public_jobs"] == {
        "wanted": True,
        "pauses": [{"limit": "max_temperature_c", "detail": "too hot"}],
    }


def test_of_very_many_models_those_that_cannot_serve_are_told_first() -> None:
    models = [Model(model_id=f"m{number}", version="1") for number in range(MOST_MODELS + 5)]
    broken = Model(model_id="broken", version="1", status=ModelStatus.ERROR)
    inventory = replace(INVENTORY, models=(*models, broken))
    machine = told(inventory=inventory)["machine"]
    assert isinstance(machine, dict)
    assert (len(machine["models"]), machine["models_found"]) == (MOST_MODELS, MOST_MODELS + 6)
    assert machine["models"][0]["model_id"] == "broken"
