import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.conftest import Served


@pytest.mark.parametrize(("form", "said"), [([], "job-1 has no place any more\n"), (["--json"], "")])
def test_a_place_is_given_back(
    served: Served, form: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Api(served.api).post("/v1/claims", {"job_id": "job-1"})
    assert main(["registry", "release", "job-1", *form, "--api", served.api]) == 0
    assert capsys.readouterr().out == said
    assert main(["registry", "release", "job-1", "--api", served.api]) == 6
