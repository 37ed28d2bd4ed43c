from typing import Any

import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.watching.changes import changes


def node(**more: object) -> dict[str, Any]:
    return {
        "node_id": "n",
        "status": "ready",
        "reason_code": "recovered",
        "reason": "well again",
        "connected": True,
        "cordoned": None,
        "gpus": [{"name": "L4", "health": "ok"}],
        "installed_models": [{"model_id": "m", "status": "ready"}],
        "in_flight_jobs": 0,
        "max_concurrent_jobs": 4,
        "last_beat_age_seconds": 1.0,
        **more,
    }


def told(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    return [plain(one) for one in changes({"nodes": before}, {"nodes": after})]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"last_beat_age_seconds": 2.0, "reason_code": "registered"}, []),
        ({"status": "degraded", "reason": "no GPU"}, ["ready → degraded: no GPU"]),
        ({"connected": False}, ["disconnected"]),
        ({"status": "offline", "connected": False, "reason": "silent"}, ["ready → offline: silent"]),
        ({"cordoned": ""}, ["cordoned"]),
        ({"cordoned": "odd"}, ["cordoned: odd"]),
        ({"gpus": [{"name": "L4", "health": "lost"}]}, ["GPUs: 1x L4 → 1x L4 (1 not ok)"]),
        ({"installed_models": [{"model_id": "m", "status": "error"}]}, ["models ready: 1 → 0/1"]),
        ({"in_flight_jobs": 2}, ["jobs: 0 → 2 of 4"]),
    ],
)
def test_each_thing_that_changed_is_a_line(change: dict[str, Any], words: list[str]) -> None:
    assert told([node()], [node(**change)]) == [f"n  {one}" for one in words]


def test_ways_back_are_told_too() -> None:
    before = node(connected=False, cordoned="odd")
    assert told([before], [node()]) == ["n  connected again", "n  uncordoned"]


def test_the_reason_alone_may_change() -> None:
    before = node(status="degraded", reason_code="a", reason="x")
    assert told([before], [node(status="degraded", reason_code="b", reason="y")]) == ["n  still degraded: y"]


def test_nodes_come_and_go() -> None:
    assert told([node(node_id="a")], [node(node_id="b")]) == [
        "a  no longer listed",
        "b  listed: ready: well again",
    ]
