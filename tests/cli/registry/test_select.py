import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import Refusal, standing_in

PATH = "POST /v1/dispatch/select"


def test_the_node_that_a_job_would_get_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    place = {"node_id": "node-7", "gpu_uuids": ["GPU-1"], "endpoint": None}
    with standing_in({PATH: place}) as registry:
        assert main(["registry", "select", "--model", "m", "--gpus", "2", "--api", registry.api]) == 0
        assert capsys.readouterr().out == "node-7, GPUs GPU-1\n"
        assert main(["registry", "select", "--json", "--api", registry.api]) == 0
        assert json.loads(capsys.readouterr().out) == place
        assert registry.bodies(PATH)[0] == {"required_models": ["m"], "gpu_count": 2}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_nobody_to_take_it_is_exit_7(form: list[str]) -> None:
    with standing_in({PATH: Refusal(409, "NO_AVAILABLE_NODE")}) as registry:
        assert main(["registry", "select", *form, "--api", registry.api]) == 7
