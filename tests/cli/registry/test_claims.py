import json

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.conftest import Served


def test_claims_are_listed_with_their_nodes_and_ends(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "claims", "--api", served.api]) == 0
    assert "No claim is held." in capsys.readouterr().out
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claims", "--api", served.api]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("ENDS IN", "job-1", served.able, "9 min"))
    assert main(["registry", "claims", "--json", "--api", served.api]) == 0
    assert [claim["job_id"] for claim in json.loads(capsys.readouterr().out)["claims"]] == ["job-1"]


def test_those_on_one_node_are_asked_for(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "claims", "--node", served.new, "--api", served.api]) == 0
    assert f"No claim is held on {served.new}." in capsys.readouterr().out
    assert main(["registry", "claims", "--node", served.able, "--api", served.api]) == 0
    assert "job-1" in capsys.readouterr().out


def test_a_node_that_nobody_knows_is_not_said_to_hold_none(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "claims", "--node", f"{served.able}x", "--api", served.api]) == 6
    said = capsys.readouterr()
    assert said.out == ""
    assert f"did you mean {served.able}" in said.err
