import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from gpu_agent.cli.client.answers import Answer as Reply
from gpu_agent.cli.client.http import Api
from gpu_agent.cli.client.resources import Node
from gpu_agent.cli.command import Failure
from gpu_agent.cli.main import main
from gpu_agent.cli.registry import node_drain
from gpu_agent.cli.registry.node_drain import wait_until_offline
from gpu_agent.wire.api import NodeDetail
from tests.cli.answers import answer_of
from tests.cli.conftest import Served
from tests.cli.stand_in import Answer, Refusal, Said, standing_in
from tests.cli.terminal import OnTerminal


def test_a_drain_keeps_what_runs_and_says_how_the_node_stands(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "node", "drain", served.able, "--deadline", "30s", "--server", served.api]) == 0
    assert f"{served.able} is draining" in capsys.readouterr().out


def test_json_is_the_node_as_the_api_answers_it(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "registry",
        "node",
        "drain",
        served.able,
        "--reason",
        "new fans",
        "--json",
        "--server",
        served.api,
    ]
    assert main(words) == 0
    assert "new fans" in json.loads(capsys.readouterr().out)["drain"]["reason"]


def test_an_idle_node_is_offline_at_once(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "drain", served.able, "--server", served.api]) == 0
    assert f"{served.able} is offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["node-UNKNOWN"], 6),
        (["node-1", "--deadline", "soon"], 4),
        (["node-1", "--deadline", "10"], 4),
    ],
)
def test_what_cannot_be_drained_is_refused(served: Served, words: list[str], code: int) -> None:
    assert main(["registry", "node", "drain", *words, "--server", served.api]) == code


def test_an_unknown_node_is_refused_with_the_command_that_lists_them(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "drain", "node-UNKNOWN", "--server", served.api]) == 6
    assert "gpu-agent registry node list" in capsys.readouterr().err


def test_a_drain_can_be_waited_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    release = threading.Timer(1.5, Api(served.api).delete, ["/v1/claims/job-1"])
    release.start()
    assert main(["registry", "node", "drain", served.able, "--wait", "--server", served.api]) == 0
    release.join()
    said = capsys.readouterr()
    assert f"{served.able} is offline" in said.out
    assert "is draining, 1 job in flight, 9 min left: job-1" in said.err


def test_an_interrupted_wait_says_that_the_drain_goes_on(served: Served) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    with OnTerminal("registry", "node", "drain", served.able, "--wait", "--server", served.api) as drain:
        drain.await_words("min left: job-1")
        drain.send(signal.SIGINT)
        assert drain.wait() == 130
    assert "goes on" in drain.shown
    assert "registry node resume" in drain.shown


DRAIN = {"by_operator": True, "deadline": 4e9, "reason": ""}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_drain, "POLL_SECONDS", 0.01)


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
        "last_heartbeat_age_seconds": 1.0,
        "checks": [],
        "events": [],
        "drain": DRAIN,
        **more,
    }


def one_after_the_other(*answers: Said) -> Callable[[], Said]:
    left: Iterator[Said] = iter(answers)
    return lambda: next(left)


def waited(now: Mapping[str, Any], answer: Answer) -> NodeDetail:
    with standing_in({"GET /v1/nodes/node-7": answer}) as registry:
        found = wait_until_offline(Node(Api(registry.api), "node-7"), answer_of(NodeDetail, now))
        return found.model


def test_jobs_in_flight_are_shown_until_they_have_ended(capsys: pytest.CaptureFixture[str]) -> None:
    answers = one_after_the_other(
        node("draining", in_flight_jobs=1, running_jobs=["job-2"]), node("draining"), node("offline")
    )
    start = node("draining", in_flight_jobs=2, claimed_jobs=["job-1"], running_jobs=["job-2"])
    assert waited(start, answers).status == "offline"
    said = capsys.readouterr().err
    assert re.sub(r", \d+ d left", "", said) == (
        "node-7 is draining, 2 jobs in flight: job-1, job-2\n"
        "node-7 is draining, 1 job in flight: job-2\n"
        "node-7 is draining, 0 jobs in flight\n"
    )


def test_a_drain_that_waits_for_its_node_to_be_ready_is_waited_for() -> None:
    answers = one_after_the_other(node("ready"), node("offline"))
    assert waited(node("registering"), answers).status == "offline"


def test_a_node_that_was_resumed_ends_the_waiting() -> None:
    with pytest.raises(Failure, match="ended: it is ready"):
        waited(node("draining"), node("ready", drain=None))


def test_a_node_that_was_removed_ends_the_waiting() -> None:
    with pytest.raises(Failure, match="gone"):
        waited(node("draining"), Refusal(404, "OTHER", "gone"))


def test_a_registry_that_restarts_is_waited_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    node = Node(Api(served.api), served.able)
    api = Api("http://127.0.0.1:9")
    seen = iter([api, Api(served.api)])

    class Away(Node):
        def detail(self) -> Reply[NodeDetail]:
            return Node(next(seen), self.node_id).detail()

    now = node.act("drain", NodeDetail).document
    draining = answer_of(NodeDetail, {**now, "status": "draining", "drain": DRAIN})
    assert wait_until_offline(Away(api, served.able), draining).model.status == "offline"
    assert "waiting for it" in capsys.readouterr().err
