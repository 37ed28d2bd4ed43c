from typing import Any

import pytest

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.lines import plain
from gpu_agent.cli.nodes.page import SHOWN_EVENTS, node_page
from tests.cli.conftest import Served

NOW = 1_000_000.0


def node(**more: object) -> dict[str, Any]:
    return {
        "node_id": "node-3ECEA4E2",
        "status": "degraded",
        "reason_code": "gpu_unavailable",
        "reason": "none of the 8 GPUs is usable: the driver has not answered for 71 s, over its limit",
        "clears_when": "3 healthy beats in a row",
        "since": NOW - 300,
        "connected": True,
        "gpus": [
            {
                "name": "NVIDIA H100 80GB HBM3",
                "uuid": "GPU-11111111-2222-4333-a444-555555555555",
                "health": "unknown",
                "usable": False,
                "memory_mb": 81559,
                "memory_used_mb": 2048,
                "utilization_percent": 30.4,
                "temperature_c": 41,
                "power_w": None,
                "reasons": ["nvml_hung"],
            }
        ],
        "installed_models": [
            {"model_id": "demo/chat-70b", "version": "1", "status": "ready", "enabled": False, "kind": "llm"}
        ],
        "in_flight_jobs": 0,
        "max_concurrent_jobs": 4,
        "last_beat_age_seconds": 2.0,
        "checks": [{"name": "gpus", "ok": False, "detail": "0 of 8 GPUs usable"}],
        "events": [],
        **more,
    }


def drawn(shown: dict[str, Any], columns: int | None = None) -> str:
    return "\n".join(plain(one) for one in node_page(shown, columns, now=NOW))


def test_status_and_what_would_change_it_come_first() -> None:
    lines = drawn(node()).splitlines()
    assert lines[0] == "node-3ECEA4E2  degraded  (gpu_unavailable)"
    assert lines[1].startswith("none of the 8 GPUs is usable")
    assert lines[2] == "Changes when: 3 healthy beats in a row"


@pytest.mark.parametrize(
    "words",
    [
        "unknown unusable",
        "2/80 GiB",
        "30%",
        "41°C",
        "nvml_hung",
        "GPU-11111111-2222",
        "ready disabled",
        "llm",
        "FAILS",
        "0 of 8 GPUs usable",
    ],
)
def test_gpus_models_and_checks_say_how_they_are(words: str) -> None:
    assert words in drawn(node())


def test_unknown_figures_are_question_marks_never_zero() -> None:
    gpu = {"name": "GB10", "health": "ok", "memory_mb": None}
    row = next(one for one in drawn(node(gpus=[gpu])).splitlines() if one.startswith("GB10"))
    assert row.split() == ["GB10", "ok", "unknown", "?", "?", "?"]


def test_only_the_newest_events_are_shown() -> None:
    events = [
        {"at": NOW - 60 + n, "event": "claim_expired", "fields": {"job_id": f"j{n}"}} for n in range(30)
    ]
    said = drawn(node(events=events))
    assert said.count("claim of job") == SHOWN_EVENTS
    assert said.endswith("31 s ago  claim of job j29 expired")


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_page_fits_the_terminal(columns: int) -> None:
    assert max(map(len, drawn(node(), columns).splitlines())) <= columns


def test_a_real_nodes_page_can_be_drawn(served: Served) -> None:
    assert "CHECK" in drawn(Api(served.api).get(f"/v1/nodes/{served.able}"))
