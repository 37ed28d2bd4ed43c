import json

import pytest

from gpu_agent.cli.app import main
from tests.cli.conftest import Served
from tests.programs import Registry


def explained(served: Served, *words: str) -> int:
    return main(["registry", "explain", *words, "--api", served.api])


def test_each_node_answers_with_need_and_have(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(served, "--model", "m") == 0
    said = capsys.readouterr().out
    assert all(
        word in said for word in (served.able, "able", served.new, "status_not_ready", "1 able; excluded")
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "nobody/has-this"], "model_not_available"),
        (["--feature", "emotion_detection"], "feature_not_supported"),
        (["--public"], "not_in_public_pool"),
        (["--gpus", "2"], "gpu_unavailable"),
        (["--gpu-name", "H100"], "gpu_unavailable"),
        (["--min-gpu-memory-mb", "99999"], "capacity_exceeded"),
        (["--label", "zone=a"], "label_mismatch"),
        (["--node", "node-OTHER"], "not_allowed"),
    ],
)
def test_each_demand_is_asked_for(
    served: Served, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(served, "--json", *words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {one["node_id"]: one["reason"] for one in answer["excluded"]}[served.able] == reason


def test_a_label_without_a_value_is_refused_with_an_example(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explained(served, "--label", "zone") == 4
    assert "zone=a" in capsys.readouterr().err


def test_an_empty_registry_says_how_to_start_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    with Registry() as registry:
        assert main(["registry", "explain", "--api", registry.api]) == 0
    assert "gpu-agent run --registry" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--gpus", "--min-gpu-memory-mb"])
@pytest.mark.parametrize(
    ("number", "words"), [("0", "at least 1"), ("-1", "at least 1"), ("x", "whole number")]
)
def test_a_number_that_makes_no_sense_is_a_wrong_argument(
    option: str, number: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "explain", f"{option}={number}"]) == 4
    assert words in capsys.readouterr().err
