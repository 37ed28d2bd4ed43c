import json

import pytest

from gpu_agent.cli.main import main
from tests.cli.conftest import Served
from tests.programs import Registry, free_port


def test_every_node_is_listed_with_status_and_reason(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "list", "--server", served.api]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in (served.able, served.new, "ready", "registering", "1/1 L4"))


def test_json_is_what_the_api_returns(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "list", "--json", "--server", served.api]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert {node["node_id"]: node["status"] for node in nodes} == {
        served.able: "ready",
        served.new: "registering",
    }


def test_an_empty_registry_says_how_to_start_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    with Registry() as registry:
        assert main(["registry", "node", "list", "--server", registry.api]) == 0
    assert "gpu-agent run --registry" in capsys.readouterr().out


def test_no_registry_is_exit_5_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "list", "--server", f"http://127.0.0.1:{free_port()}"]) == 5
    assert "registry serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--status", "ready"], ["able"]),
        (["--status", "ready", "--status", "registering"], ["able", "new"]),
        (["--model", "m"], ["able"]),
        (["--gpu-name", "l4"], ["able", "new"]),
        (["--gpu-name", "H100"], []),
        (["--label", "zone=a"], []),
    ],
    ids=" ".join,
)
def test_those_that_are_like_it_are_listed(
    served: Served, words: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "list", "--json", *words, "--server", served.api]) == 0
    listed = {node["node_id"] for node in json.loads(capsys.readouterr().out)["nodes"]}
    assert listed == {getattr(served, name) for name in found}


def test_no_node_of_that_kind_is_mentioned(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "list", "--gpu-name", "H100", "--server", served.api]) == 0
    assert "No node is like that" in capsys.readouterr().out


def test_a_status_that_there_is_not_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "list", "--status", "reddy"]) == 4
    assert "'reddy' is not one of 'registering', 'ready'" in capsys.readouterr().err
