import json

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.conftest import Served
from tests.cli.stand_in import standing_in


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        ([], {"at_once": False}, "gets another token now"),
        (["--at-once"], {"at_once": True}, "gpu-agent registry reclaim node-7"),
    ],
)
def test_what_comes_of_it_is_said(
    words: list[str], body: dict[str, bool], said: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Api(served.api).get(f"/v1/nodes/{served.able}") | {"node_id": "node-7"}
    path = "POST /v1/nodes/node-7/rotate"
    with standing_in({path: node}) as registry:
        assert main(["registry", "token", "rotate", "node-7", *words, "--api", registry.api]) == 0
        assert said in capsys.readouterr().out
        assert main(["registry", "token", "rotate", "node-7", *words, "--json", "--api", registry.api]) == 0
        assert json.loads(capsys.readouterr().out) == node
        assert registry.bodies(path) == [body, body]


def test_a_node_that_is_away_gets_it_when_it_comes_back(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Api(served.api).get(f"/v1/nodes/{served.able}") | {"connected": False}
    with standing_in({"POST /v1/nodes/n/rotate": node}) as registry:
        assert main(["registry", "token", "rotate", "n", "--api", registry.api]) == 0
    assert "when it next registers" in capsys.readouterr().out
