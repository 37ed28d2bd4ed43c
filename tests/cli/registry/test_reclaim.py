import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import standing_in

PATH = "POST /v1/nodes/node-7/reclaim"
MADE = {"token_id": "3f9a01bc", "token": "gpuj_3f9a01bc_x", "expires_at": None}


def test_the_token_that_gives_an_id_back_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "reclaim", "node-7", "--api", registry.api]) == 0
        assert main(["registry", "reclaim", "node-7", "--ttl", "1h", "--api", registry.api]) == 0
        assert registry.bodies(PATH) == [{}, {"ttl_seconds": 3600.0}]
    said = capsys.readouterr()
    assert said.out == "gpuj_3f9a01bc_x\n" * 2
    assert "gives node-7 its id back, once" in said.err
