import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.conftest import Served


def test_a_cordon_is_lifted_and_the_rest_that_stands_in_the_way_is_named(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    for node_id, words in ((served.able, "new jobs now"), (served.new, "once it is ready and connected")):
        assert main(["registry", "cordon", node_id, "--api", served.api]) == 0
        assert main(["registry", "uncordon", node_id, "--api", served.api]) == 0
        assert words in capsys.readouterr().out
    assert main(["registry", "uncordon", served.able, "--json", "--api", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["cordoned"] is None
