import json
import signal
import threading

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.a_terminal import OnTerminal
from tests.cli.conftest import Served


def test_a_drain_keeps_what_runs_and_says_how_the_node_stands(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "drain", served.able, "--deadline", "30s", "--api", served.api]) == 0
    assert f"{served.able} is draining" in capsys.readouterr().out


def test_json_is_the_node_as_the_api_answers_it(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["registry", "drain", served.able, "--reason", "new fans", "--json", "--api", served.api]
    assert main(words) == 0
    assert "new fans" in json.loads(capsys.readouterr().out)["drain"]["reason"]


def test_an_idle_node_is_offline_at_once(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "drain", served.able, "--api", served.api]) == 0
    assert f"{served.able} is offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["node-NOBODY"], 6),
        (["node-1", "--deadline", "soon"], 4),
        (["node-1", "--deadline", "10"], 4),
    ],
)
def test_what_cannot_be_drained_is_refused(served: Served, words: list[str], code: int) -> None:
    assert main(["registry", "drain", *words, "--api", served.api]) == code


def test_an_unknown_node_is_told_with_the_command_that_lists_them(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "drain", "node-NOBODY", "--api", served.api]) == 6
    assert "gpu-agent registry nodes" in capsys.readouterr().err


def test_a_drain_can_be_waited_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    release = threading.Timer(1.5, Api(served.api).delete, ["/v1/claims/job-1"])
    release.start()
    assert main(["registry", "drain", served.able, "--wait", "--api", served.api]) == 0
    release.join()
    said = capsys.readouterr()
    assert f"{served.able} is offline" in said.out
    assert "is draining, 1 job in flight: job-1" in said.err


def test_whoever_stops_waiting_is_told_that_the_drain_goes_on(served: Served) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    with OnTerminal("registry", "drain", served.able, "--wait", "--api", served.api) as drain:
        drain.await_words("min left: job-1")
        drain.send(signal.SIGINT)
        assert drain.wait() == 130
    assert "goes on" in drain.shown
    assert "registry resume" in drain.shown
