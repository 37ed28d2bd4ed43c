from typing import Any

import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.local.status_facts import doing, facts
from gpu_agent.node.limits import Limit, Pause
from gpu_agent.node.public_pool import Standing
from gpu_agent.node.socket.status import Moment, status
from gpu_agent.session.story import State
from gpu_agent.wire.declaration import Owner
from tests.node.an_agent import picture

NOW = 1_700_000_000.0
MOMENT = Moment(monotonic=100.0, wall=NOW)


def told(*, announced: bool = False, **more: object) -> dict[str, str]:
    """The facts of an agent, by name."""
    answer = status(picture(**more), [], announced=announced, started_at=NOW - 3600, moment=MOMENT)
    return {name: plain(words) for name, words in facts(answer, now=NOW)}


def test_a_connected_agent_tells_of_its_link_its_verdict_and_its_beats() -> None:
    said = told()
    assert said["registry"].startswith("ws://r:8080/ws/node connected since ")
    assert said["registry"].endswith("(95 s), last beat 70 s ago (one every 15 s)")
    assert said["verdict"] == "ready, told 80 s ago"
    assert said["probe"] == "GPUs read 1 s ago"
    assert "up 60 min" in said["agent"]
    assert "next" not in said
    assert "drain" not in said


def test_while_the_registry_is_away_the_next_attempt_and_the_age_of_its_word_are_told() -> None:
    said = told(state=State.BACKING_OFF, next_attempt_at=112.0, last_refusal="connection refused")
    assert "not connected since" in said["registry"]
    assert said["next"].startswith("tries again in 12 s, at ")
    assert said["verdict"] == "ready, told 80 s ago, before the connection was lost"


def test_before_anything_is_known_nothing_is_guessed() -> None:
    said = told(
        state=State.WAITING_GPU,
        verdict=None,
        inventory=None,
        link_since=None,
        last_beat_at=None,
        interval_seconds=None,
    )
    assert said["registry"] == "ws://r:8080/ws/node not connected, no beat yet"
    assert said["verdict"].startswith("none yet")
    assert said["probe"] == "none has ended yet"


@pytest.mark.parametrize(
    ("stands", "words"),
    [
        (
            {"drain_reason": "new fans", "drain_until": 160.0},
            "by its owner: new fans; over in 60 s at the latest",
        ),
        (
            {"drain_reason": "new fans", "drain_until": 160.0, "state": State.DRAINED},
            "over: new fans; `gpu-agent resume` takes it back",
        ),
    ],
)
def test_a_drain_is_told(stands: dict[str, Any], words: str) -> None:
    assert told(**stands)["drain"] == words


def test_jobs_are_told_with_the_places_and_with_who_counts_them() -> None:
    four = Owner(max_concurrent_jobs=4)
    assert told(announced=True, owner=four)["jobs"] == "0 in flight, of 4 places"
    assert told()["jobs"] == "none announced: processes on the GPUs are counted instead"


def test_public_jobs_are_accepted_paused_with_the_reasons_or_not_wanted() -> None:
    pauses = (Pause(Limit.SCHEDULE, "outside the hours"), Pause(Limit.TEMPERATURE, "GPU 0 is at 85 C"))
    assert told()["public"] == "accepted"
    assert told(public_jobs=Standing(wanted=False))["public"] == "not accepted: accept_public_jobs is false"
    paused = told(public_jobs=Standing(wanted=True, pauses=pauses))["public"]
    assert paused == "paused: outside the hours; GPU 0 is at 85 C"


def test_labels_and_models_left_out_are_told() -> None:
    said = told(owner=Owner(labels={"zone": "a", "rack": "7"}), models_left_out=("m", "n"))
    assert said["labels"] == "rack=7, zone=a"
    assert said["probe"] == "GPUs read 1 s ago; 2 models are not declared, for want of room"


def test_what_it_does_meanwhile_is_said_with_why() -> None:
    answer: dict[str, Any] = {"session": {"state": "backing_off", "why": "it is away."}}
    assert doing(answer) == "it waits to try again: it is away"
    assert doing({"session": {"state": "dancing", "why": None}}) == "dancing"


def test_an_agent_that_was_stopped_and_waits_for_its_jobs_says_so() -> None:
    assert told(state=State.LEAVING)["agent"].endswith("; it was stopped, and waits for its jobs to end")
