import json
from collections.abc import Mapping
from typing import Any

import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.main import main
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.registry.node_page import SHOWN_EVENTS, node_facts, node_page
from gpu_agent.wire.api import NodeDetail
from tests.cli.answers import model_of
from tests.cli.conftest import Served


def test_a_node_is_shown_with_checks_models_and_history(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "show", served.able, "--server", served.api]) == 0
    said = capsys.readouterr().out
    for words in (served.able, "ready", "gpus", "1 of 1 GPUs usable", "registering → ready"):
        assert words in said


def test_a_node_on_its_way_says_what_would_change_its_status(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "show", served.new, "--server", served.api]) == 0
    assert "Changes when:" in capsys.readouterr().out


def test_json_is_what_the_api_returns(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "show", served.able, "--json", "--server", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ready"


def test_an_unknown_node_is_refused_by_name(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "show", "node-UNKNOWN", "--server", served.api]) == 6
    assert "node-UNKNOWN" in capsys.readouterr().err


NOW = 1_000_000.0


def node(**more: object) -> dict[str, Any]:
    return {
        "node_id": "node-3ECEA4E2",
        "status": "degraded",
        "reason_code": "gpu_unavailable",
        "reason": "none of the 8 GPUs is usable: the driver has not answered for 71 s, over its limit",
        "clears_when": "3 healthy heartbeats in a row",
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
        "last_heartbeat_age_seconds": 2.0,
        "checks": [{"name": "gpus", "ok": False, "detail": "0 of 8 GPUs usable"}],
        "events": [],
        **more,
    }


def drawn(shown: Mapping[str, Any], columns: int | None = None) -> str:
    return "\n".join(plain_text(one) for one in node_page(model_of(NodeDetail, shown), columns, now=NOW))


def test_status_and_what_would_change_it_come_first() -> None:
    lines = drawn(node()).splitlines()
    assert lines[0] == "node-3ECEA4E2  degraded  (gpu_unavailable)"
    assert lines[1].startswith("none of the 8 GPUs is usable")
    assert lines[2] == "Changes when: 3 healthy heartbeats in a row"


@pytest.mark.parametrize(
    ("usable", "code", "words"),
    [
        (True, "fabric_incomplete", "degraded jobs of one GPU only"),
        (False, "xid_48", "degraded no new jobs"),
        (True, "hw_slowdown", "degraded"),
    ],
)
def test_a_degraded_gpu_says_which_jobs_it_takes(usable: bool, code: str, words: str) -> None:  # noqa: FBT001
    shown = node()
    shown["gpus"] = [{**shown["gpus"][0], "health": "degraded", "usable": usable, "reasons": [code]}]
    assert words in drawn(shown)
    assert "unusable" not in drawn(shown)


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


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ({}, "free"),
        ({"usable": False}, ""),
        ({"processes": 2}, "in use without a claim"),
        ({"claimed_by": "job-1", "processes": 2}, "job job-1"),
        ({"shared_by": ["a", "b"]}, "job a; job b"),
        ({"held_for": "job-1"}, "held for job-1"),
        ({"cordoned": "cordoned by ann: hot"}, "cordoned by ann: hot"),
        ({"claimed_by": "job-1", "cordoned": "cordoned by ann: hot"}, "job job-1; cordoned by ann: hot"),
    ],
)
def test_each_gpu_says_who_has_it(use: Mapping[str, object], words: str) -> None:
    gpu = {"name": "L4", "health": "ok", "usable": True, "memory_mb": 24_576, **use}
    head, row = [one for one in drawn(node(gpus=[gpu])).splitlines() if one.startswith(("GPU ", "L4 "))]
    assert row[head.index("USE") : head.index("  MEMORY") + 2].strip().startswith(words)
    assert words or "free" not in row


def test_unknown_figures_are_question_marks_never_zero() -> None:
    gpu = {"name": "GB10", "health": "ok", "usable": True}
    row = next(one for one in drawn(node(gpus=[gpu])).splitlines() if one.startswith("GB10"))
    assert row.split() == ["GB10", "ok", "free", "unknown", "?", "?", "?"]


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
    assert "CHECK" in drawn(Api(served.api).request("GET", f"/v1/nodes/{served.able}"))


BARE: dict[str, Any] = {
    "node_id": "n",
    "status": "ready",
    "since": NOW - 300,
    "connected": True,
    "gpus": [],
    "in_flight_jobs": 0,
    "max_concurrent_jobs": 4,
    "last_heartbeat_age_seconds": None,
}


def facts(**more: object) -> dict[str, str]:
    node = model_of(NodeDetail, {**BARE, **more})
    return {name: plain_text(words) for name, words in node_facts(node, now=NOW)}


def test_what_is_not_known_is_left_out() -> None:
    assert list(facts()) == ["since", "link", "jobs", "gpus", "token", "agent", "host"]
    assert facts()["link"].startswith("connected, no heartbeat yet")


@pytest.mark.parametrize(
    ("fact", "fields", "words"),
    [
        ("since", {"previous_status": "degraded"}, "(5 min), degraded before that"),
        ("link", {"connected": False, "address": "10.0.0.7:9"}, "not connected now, last from 10.0.0.7:9"),
        ("link", {"round_trip_ms": 0.254}, "connected, 0.25 ms there and back, no heartbeat yet"),
        ("link", {"round_trip_ms": 121.5}, "connected, 121.5 ms there and back"),
        ("link", {"round_trip_ms": 7.0, "connected": False}, "no heartbeat yet"),
        (
            "link",
            {
                "last_heartbeat_age_seconds": 3.2,
                "heartbeat_interval_seconds": 15.0,
                "heartbeat_timeout_seconds": 45.0,
            },
            "connected, last heartbeat 3 s ago (one every 15 s; offline after 45 s)",
        ),
        ("jobs", {"claimed_jobs": ["a"], "running_jobs": None}, "0 of 4 slots occupied: a (claimed)"),
        (
            "jobs",
            {"claimed_jobs": ["a", "b"], "running_jobs": ["b", "c"]},
            "a (claimed, not begun), b (claimed, runs), c (runs without a claim)",
        ),
        ("jobs", {"accept_public_jobs": True}, "0 of 4 slots occupied; public jobs too"),
        (
            "drain",
            {
                "status": "draining",
                "drain": {"by_operator": True, "deadline": NOW + 600, "reason": "new fans"},
            },
            "by an operator: new fans; offline in 10 min at the latest",
        ),
        (
            "drain",
            {"status": "offline", "drain": {"by_operator": False, "deadline": NOW + 600, "reason": ""}},
            "by the node itself",
        ),
        ("cordon", {"cordoned": "odd noise"}, "odd noise"),
        ("cordon", {"cordoned": ""}, "no reason given"),
        (
            "load",
            {"cpu_percent": 12.4, "mem_percent": None, "probe_age_seconds": 4.8},
            "CPU 12 %, GPUs read 4 s ago",
        ),
        (
            "labels",
            {"labels": {"zone": "a", "rack": "7"}, "granted_labels": {"rack": "8"}},
            "rack=8 (granted), zone=a",
        ),
        ("token", {"token": None}, "none: nothing proves that this node is itself"),
        (
            "token",
            {"token": {"token_id": "0123abcd", "rotating": False, "joined_by": "89abcdef"}},
            "0123abcd, joined with 89abcdef",
        ),
        (
            "token",
            {"token": {"token_id": "0123abcd", "rotating": True, "joined_by": None}},
            "0123abcd; it gets another one, and has not connected with that yet",
        ),
        ("features", {"features": ["kv_cache", "streaming_tts"]}, "kv_cache, streaming_tts"),
        (
            "agent",
            {
                "agent_version": "1.0",
                "capability_schema_version": "1.1",
                "session_epoch": 3,
                "endpoint": "h:1",
                "simulated": True,
            },
            "version 1.0, schema 1.1, session 3, workers at h:1, simulated: these GPUs do not exist",
        ),
        (
            "host",
            {
                "platform": "linux",
                "cpu_cores": 8,
                "memory_gb": 32,
                "driver_version": "550",
                "cuda_version": "12.4",
            },
            "linux, 8 cores, 32 GB memory, driver 550, CUDA 12.4",
        ),
    ],
)
def test_what_is_known_is_shown(fact: str, fields: dict[str, Any], words: str) -> None:
    assert words in facts(**fields)[fact]


def test_no_fact_can_act_on_a_terminal() -> None:
    said = facts(labels={"\x1b": "\n"}, cordoned="\x07", features=["\x1b[2J"], endpoint="\x1b")
    assert all(words.isprintable() for words in said.values())


def test_admission_checks_are_listed_with_those_that_fail_first_and_equal_ones_as_one_row() -> None:
    def check(name: str, scope: str, *, ok: bool, required: bool = True) -> dict[str, Any]:
        detail = "x4 of x16" if name == "pcie_link" and not ok else "as it should be"
        return {
            "name": name,
            "scope": scope,
            "ok": ok,
            "detail": detail,
            "at": NOW - 90,
            "required": required,
        }

    checks = [
        check("hook", "node", ok=True),
        check("pcie_link", "GPU-1", ok=True),
        check("pcie_link", "GPU-2", ok=True),
        check("pcie_link", "GPU-3", ok=False),
        check("gpu_model", "GPU-3", ok=False, required=False),
    ]
    page = [line.split() for line in drawn(node(node_checks=checks)).splitlines()]
    begin = page.index(["ADMISSION", "CHECK", "SCOPE", "AGE", "DETAIL"]) + 1
    rows = [" ".join(row) for row in page[begin : begin + 4]]
    assert rows == [
        "pcie_link FAILS GPU-3 90 s x4 of x16",
        "gpu_model fails, not required GPU-3 90 s as it should be",
        "hook ok node 90 s as it should be",
        "pcie_link ok 2 GPUs 90 s as it should be",
    ]
    assert "ADMISSION" not in drawn(node())
