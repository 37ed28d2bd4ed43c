import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import standing_in


def test_the_node_is_asked_and_the_person_told_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    path = "POST /v1/nodes/node-7/reregister"
    with standing_in({path: {"node_id": "node-7"}}) as registry:
        assert main(["registry", "reregister", "node-7", "--api", registry.api]) == 0
        assert "node-7 was asked to" in capsys.readouterr().out
        assert main(["registry", "reregister", "node-7", "--json", "--api", registry.api]) == 0
        assert json.loads(capsys.readouterr().out) == {"node_id": "node-7"}
        assert registry.bodies(path) == [{}, {}]
