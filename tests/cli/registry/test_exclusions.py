import json
import time
from typing import Any

import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import standing_in


def window(**more: object) -> dict[str, Any]:
    return {
        "window_start": time.time() - 60,
        "window_end": time.time(),
        "failed": 3,
        "counts": {"model_not_available": 6, "cordoned": 3},
        "examples": {"model_not_available": [{"node_id": "n", "need": "model m", "have": "not installed"}]},
        "last_jobs": ["job-1"],
        **more,
    }


def said(capsys: pytest.CaptureFixture[str], *windows: dict[str, Any], form: tuple[str, ...] = ()) -> str:
    with standing_in({"GET /v1/exclusions": {"windows": windows}}) as registry:
        assert main(["registry", "exclusions", *form, "--api", registry.api]) == 0
    return capsys.readouterr().out


def test_each_reason_of_each_minute_is_a_line_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [" ".join(line.split()) for line in said(capsys, window()).splitlines()]
    assert lines[0] == "FROM FAILED REASON NODES FOR EXAMPLE"
    assert lines[1].endswith("3 model_not_available 6 n needs model m; has not installed")
    assert lines[2].endswith("3 cordoned 3")


def test_a_registry_without_nodes_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no node known" in said(capsys, window(counts={}, examples={}))


def test_an_hour_without_failures_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "found a node" in said(capsys)


def test_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    shown = window()
    assert json.loads(said(capsys, shown, form=("--json",))) == {"windows": [shown]}
