import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.conftest import Served


def test_a_place_is_reserved_and_the_same_job_gets_the_same(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["registry", "claim", "job-1", "--model", "m", "--api", served.api]) == 0
        assert f"job-1 has a place on {served.able}" in capsys.readouterr().out
    assert main(["registry", "claim", "job-1", "--json", "--api", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["node_id"] == served.able
    assert len(served.registry.get("/v1/claims")["claims"]) == 1


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_nobody_to_take_it_is_exit_7(served: Served, form: list[str]) -> None:
    assert main(["registry", "claim", "job-1", "--gpus", "9", *form, "--api", served.api]) == 7
