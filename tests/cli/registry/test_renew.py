import json

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.conftest import Served


def test_a_place_is_kept_for_one_more_ttl(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "renew", "job-1", "--api", served.api]) == 0
    assert f"job-1 keeps its place on {served.able}" in capsys.readouterr().out
    assert main(["registry", "renew", "job-1", "--json", "--api", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["job_id"] == "job-1"


def test_a_claim_that_is_not_held_is_exit_6(served: Served) -> None:
    assert main(["registry", "renew", "job-1", "--api", served.api]) == 6
