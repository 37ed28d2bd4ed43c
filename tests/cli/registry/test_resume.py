import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.conftest import Served


def test_a_drained_node_is_taken_back(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "drain", served.able, "--api", served.api]) == 0
    assert main(["registry", "resume", served.able, "--api", served.api]) == 0
    assert f"{served.able} is registering: " in capsys.readouterr().out
    assert main(["registry", "resume", served.able, "--json", "--api", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["drain"] is None
