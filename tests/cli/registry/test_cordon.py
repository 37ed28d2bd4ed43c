import json

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.conftest import Served


def test_a_cordoned_node_is_told_what_stays(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    words = ["registry", "cordon", served.able, "--reason", "odd noise", "--api", served.api]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "no new jobs" in said
    assert "is ready, and keeps its 1 job" in said
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cordoned"] == "odd noise"
