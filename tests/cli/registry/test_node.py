import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.conftest import Served


def test_a_node_is_shown_with_checks_models_and_history(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", served.able, "--api", served.api]) == 0
    said = capsys.readouterr().out
    for words in (served.able, "ready", "gpus", "1 of 1 GPUs usable", "registering → ready"):
        assert words in said


def test_a_node_on_its_way_says_what_would_change_its_status(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", served.new, "--api", served.api]) == 0
    assert "Changes when:" in capsys.readouterr().out


def test_json_is_what_the_api_returns(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", served.able, "--json", "--api", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ready"


def test_an_unknown_node_is_refused_by_name(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "node-NOBODY", "--api", served.api]) == 6
    assert "node-NOBODY" in capsys.readouterr().err
