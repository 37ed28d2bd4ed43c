from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.outcome import Failure
from gpu_agent.cli.registry import drain_wait
from gpu_agent.cli.registry.drain_wait import until_offline
from gpu_agent.cli.registry.node_action import Node
from tests.cli.conftest import Served
from tests.cli.stand_in import Answer, Refusal, Said, standing_in

WISH = {"by_operator": True, "deadline": 4e9, "reason": ""}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_wait, "LOOK_SECONDS", 0.01)


def node(status: str, **more: object) -> dict[str, Any]:
    return {
        "node_id": "node-7",
        "status": status,
        "since": 0.0,
        "reason_code": "drain_requested",
        "reason": "asked",
        "connected": True,
        "gpus": [],
        "installed_models": [],
        "in_flight_jobs": 0,
        "max_concurrent_jobs": 4,
        "last_beat_age_seconds": 1.0,
        "checks": [],
        "events": [],
        "drain": WISH,
        **more,
    }


def one_after_the_other(*answers: Said) -> Callable[[], Said]:
    left: Iterator[Said] = iter(answers)
    return lambda: next(left)


def waited(now: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    with standing_in({"GET /v1/nodes/node-7": answer}) as registry:
        return until_offline(Node(Api(registry.api), "node-7"), now)


def test_jobs_in_flight_are_shown_until_they_have_ended(capsys: pytest.CaptureFixture[str]) -> None:
    answers = one_after_the_other(
        node("draining", in_flight_jobs=1, running_jobs=["job-2"]), node("draining"), node("offline")
    )
    start = node("draining", in_flight_jobs=2, claimed_jobs=["job-1"], running_jobs=["job-2"])
    assert waited(start, answers)["status"] == "offline"
    assert capsys.readouterr().err == (
        "node-7 is draining, 2 jobs in flight: job-1, job-2\n"
        "node-7 is draining, 1 job in flight: job-2\n"
        "node-7 is draining, 0 jobs in flight\n"
    )


def test_a_drain_that_waits_for_its_node_to_be_ready_is_waited_for() -> None:
    assert waited(node("registering"), one_after_the_other(node("ready"), node("offline")))


def test_a_drain_that_was_lifted_ends_the_waiting() -> None:
    with pytest.raises(Failure, match="lifted: it is ready"):
        waited(node("draining"), node("ready", drain=None))


def test_a_node_that_was_forgotten_ends_the_waiting() -> None:
    with pytest.raises(Failure, match="gone"):
        waited(node("draining"), Refusal(404, "OTHER", "gone"))


def test_a_registry_that_restarts_is_waited_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Node(Api(served.api), served.able)
    api = Api("http://127.0.0.1:9")
    seen = iter([api, Api(served.api)])

    class Away(Node):
        def get(self, part: str = "", *, shape: Mapping[str, Any]) -> dict[str, Any]:
            return Node(next(seen), self.node_id).get(part, shape=shape)

    now = asked.post("drain")
    away = Away(api, served.able)
    assert until_offline(away, {**now, "status": "draining", "drain": WISH})["status"] == "offline"
    assert "waiting for it" in capsys.readouterr().err
