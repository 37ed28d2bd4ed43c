import json
import re
from typing import Any

import pytest

from gpu_agent.cli.main import main
from tests.cli.stand_in import standing_in

REASON = {
    "reason": "status_not_ready",
    "refuses": "every job",
    "need": "a ready node",
    "have": "degraded (gpu_unavailable)",
    "clears_when": "3 healthy heartbeats in a row",
}
LIMIT = {
    "reason": "gpu_unavailable",
    "refuses": "jobs of more than 8 GPUs",
    "need": "9 GPUs",
    "have": "8 GPUs",
    "clears_when": "",
}
MODEL = {
    "model_id": "my/model",
    "ready": False,
    "state": "disabled",
    "versions": [{"version": "1", "enabled": False, "status": "ready"}],
    "reported": None,
}


def why(**more: object) -> dict[str, Any]:
    answer = {"node_id": "n", "refuses_every_job": False, "exclusions": [], "limits": [], "model": None}
    return {**answer, **more}


def said(capsys: pytest.CaptureFixture[str], answer: dict[str, Any], *words: str, query: str = "") -> str:
    with standing_in({f"GET /v1/nodes/n/explain{query}": answer}) as registry:
        assert main(["registry", "explain", "node", "n", *words, "--server", registry.api]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (why(), "n takes every job that fits it"),
        (why(exclusions=[REASON]), "n takes jobs, but not all of them"),
        (why(exclusions=[REASON], refuses_every_job=True), "n takes no job now"),
    ],
)
def test_the_decision_comes_first(
    answer: dict[str, Any], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, answer).splitlines()[0] == verdict


def test_what_may_pass_and_what_never_fits_is_reported_with_need_and_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys, why(exclusions=[REASON], limits=[LIMIT])).splitlines()
    assert re.split(r" {2,}", lines[3]) == [
        "every job",
        "status_not_ready",
        "now: degraded (gpu_unavailable); clears when: 3 healthy heartbeats in a row",
    ]
    assert lines[6].endswith("  gpu_unavailable")


def test_a_model_is_part_of_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    printed = said(capsys, why(model=MODEL), "--model", "my/model", query="?model=my%2Fmodel")
    assert "Model my/model: disabled (versions: 1 ready disabled)" in printed


def test_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, why(), "--json")) == why()
