import json
import re
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
    for words in (served.able, "ready", "all pass: gpus, ", "1 of 1 free: 1x L4", "registering → ready"):
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
        "hostname": "gpu-01",
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
        "checks": [{"name": "gpus", "ok": False, "detail": "none of the 8 GPUs is usable"}],
        "events": [],
        **more,
    }


def drawn(shown: Mapping[str, Any], columns: int | None = None) -> str:
    return "\n".join(plain_text(one) for one in node_page(model_of(NodeDetail, shown), columns, now=NOW))


def test_status_and_what_would_change_it_come_first() -> None:
    lines = drawn(node()).splitlines()
    assert lines[0] == "gpu-01  node-3ECEA4E2  degraded  (gpu_unavailable)"
    assert lines[1].startswith("none of the 8 GPUs is usable")
    assert lines[2] == "Changes when: 3 healthy heartbeats in a row"


def gpu(number: int = 0, **fields: object) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}1111111-2222-4333-a444-555555555555",
        "index": number,
        "name": "NVIDIA L4",
        "health": "ok",
        "usable": True,
        "memory_mb": 24_576,
        **fields,
    }


def gpu_rows(*gpus: Mapping[str, Any], columns: int | None = None, **more: object) -> list[dict[str, str]]:
    """Return the cells of the table of GPUs by their heads."""
    lines = drawn(node(status="ready", gpus=gpus, **more), columns).splitlines()
    begin = next(place for place, words in enumerate(lines) if words.startswith("GPU "))
    starts = [(one.start(), one[0]) for one in re.finditer(r"\S+", lines[begin])]
    rows = lines[begin + 1 : lines.index("", begin)]
    ends = [start for start, _ in starts[1:]]
    return [
        {head: row[start:end].strip() for (start, head), end in zip(starts, [*ends, None], strict=True)}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("usable", "code", "words"),
    [
        (True, "fabric_incomplete", "jobs of one GPU only: fabric_incomplete"),
        (False, "xid_48", "no new jobs: xid_48"),
        (True, "hw_slowdown", "hw_slowdown"),
    ],
)
def test_a_degraded_gpu_says_which_jobs_it_takes(usable: bool, code: str, words: str) -> None:  # noqa: FBT001
    (row,) = gpu_rows(gpu(health="degraded", usable=usable, reasons=[code]))
    assert (row["HEALTH"], row["USE"]) == ("degraded", words)


def test_gpus_have_the_numbers_that_the_driver_and_the_events_use() -> None:
    rows = gpu_rows(gpu(3), gpu(1))
    assert [row["GPU"] for row in rows] == ["3", "1"]


def test_mig_devices_are_numbered_below_their_gpu_which_takes_no_job_itself() -> None:
    name = "NVIDIA A100-SXM4-80GB"
    devices = [gpu(n, name=f"{name} MIG 1g.10gb", parent_uuid=gpu(0)["uuid"], index=0) for n in (1, 2)]
    rows = gpu_rows(gpu(0, name=name, usable=False), *devices, gpu(7, name=name))
    assert [row["GPU"] for row in rows] == ["0", "0:0", "0:1", "7"]
    assert rows[0]["USE"] == "split into MIG devices"
    assert rows[1]["NAME"].endswith("MIG 1g.10gb")


def test_a_gpu_without_trouble_takes_one_line() -> None:
    assert len(gpu_rows(gpu(0), gpu(1), gpu(2), columns=80)) == 3


def test_uuids_are_whole_where_there_is_room_and_distinguish_gpus_where_there_is_not() -> None:
    gpus = [gpu(0, claimed_by="train-a-large-model"), gpu(1)]
    assert [row["UUID"] for row in gpu_rows(*gpus, columns=160)] == [one["uuid"] for one in gpus]
    narrow = [row["UUID"] for row in gpu_rows(*gpus, columns=80)]
    assert narrow == ["GPU-01111111", "GPU-11111111"]
    alike = [gpu(0, uuid="GPU-11111111-a"), gpu(1, uuid="GPU-11111111-b" + "1" * 30)]
    assert len({row["UUID"] for row in gpu_rows(*alike, columns=60)}) == 2


def test_a_reason_is_explained_once_with_its_gpus_and_the_next_step() -> None:
    lost = [gpu(n, health="lost", usable=False, reasons=["gpu_lost"]) for n in (1, 2)]
    said = drawn(node(gpus=[gpu(0), *lost]))
    assert said.count("no longer answers") == 1
    assert re.search(
        r"gpu_lost +1, 2 +the GPU no longer answers .*; next step: drain the node, then reboot it", said
    )


def test_heat_is_coloured() -> None:
    shown = model_of(NodeDetail, node(gpus=[gpu(n, temperature_c=c) for n, c in enumerate((60, 88, 94))]))
    pieces = [piece for one in node_page(shown, None, now=NOW) for piece in one if "°C" in piece.text]
    assert [(piece.text, piece.style) for piece in pieces] == [
        ("60°C", ""),
        ("88°C", "yellow"),
        ("94°C", "bold red"),
    ]


def test_a_terminal_sees_bars_and_a_pipe_does_not() -> None:
    busy = gpu(0, memory_used_mb=12_288, utilization_percent=50.0)
    assert "█" in drawn(node(gpus=[busy]), 120)
    assert "█" not in drawn(node(gpus=[busy]))


def test_what_a_node_calls_its_gpus_makes_no_event_longer() -> None:
    uuids = ["GPU-0000" + "GPU-0000" * (n % 2) + str(n) for n in range(60)] + ["e", "GPU"]
    gpus = [gpu(0) | {"uuid": uuid} for uuid in uuids]
    events = [{"at": NOW, "event": "gpu_cordoned", "fields": {"gpu_uuid": uuids[0], "reason": "GPU e " * 9}}]
    said = drawn(node(gpus=gpus, events=events))
    history = said[said.index("EVENTS") :]
    assert "cordoned: GPU e GPU e" in history
    assert len(history) < 200


def test_events_name_gpus_by_their_numbers_and_fit_the_terminal() -> None:
    uuid = gpu(0)["uuid"]
    events = [
        {"at": NOW, "event": "gpu_cordoned", "fields": {"gpu_uuid": uuid, "reason": "odd noise"}},
        {
            "at": NOW,
            "event": "node_fault_reported",
            "fields": {"code": "GPU_LOST", "message": f"GPU 0 ({uuid}): it is gone. " * 5},
        },
    ]
    said = drawn(node(gpus=[gpu(0)], events=events), 80)
    assert "GPU 0 cordoned: odd noise" in said
    history = said[said.index("EVENTS") :].splitlines()
    assert not any("1111" in words for words in history)
    assert max(map(len, history)) <= 80


@pytest.mark.parametrize(
    "words",
    [
        "unknown",
        "2/80 GiB",
        "30%",
        "41°C",
        "nvml_hung",
        "GPU-11111111-2222",
        "ready disabled",
        "llm",
        "FAILS",
        "none of the 8 GPUs is usable",
    ],
)
def test_gpus_models_and_checks_say_how_they_are(words: str) -> None:
    assert words in drawn(node())


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ({}, "free"),
        ({"usable": False}, "not usable"),
        ({"health": "lost", "usable": False, "reasons": ["gpu_lost"]}, "gpu_lost"),
        ({"processes": 2}, "in use without a claim"),
        ({"claimed_by": "job-1", "processes": 2}, "job job-1"),
        ({"claimed_by": "job-1", "idle": True}, "job job-1; idle"),
        ({"shared_by": ["a", "b"]}, "job a; job b"),
        ({"held_for": "job-1"}, "held for job-1"),
        ({"cordoned": "cordoned by ann: hot"}, "cordoned by ann: hot"),
        ({"claimed_by": "job-1", "cordoned": "cordoned by ann: hot"}, "job job-1; cordoned by ann: hot"),
        (
            {"claimed_by": "job-1", "health": "lost", "usable": False, "reasons": ["gpu_lost"]},
            "job job-1; gpu_lost",
        ),
    ],
)
def test_each_gpu_says_who_has_it(use: dict[str, Any], words: str) -> None:
    assert gpu_rows(gpu(**use))[0]["USE"] == words


def test_no_gpu_is_free_on_a_node_that_takes_no_jobs() -> None:
    assert gpu_rows(gpu(), cordoned="")[0]["USE"] == "no job"


def test_unknown_figures_are_question_marks_never_zero() -> None:
    shown = drawn(node(status="ready", gpus=[gpu(memory_mb=None)])).splitlines()
    row = next(words for words in shown if words.startswith("0 "))
    assert row.split()[1:-1] == ["ok", "free", "unknown", "?", "?", "?"]


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
    assert "checks" in drawn(Api(served.api).request("GET", f"/v1/nodes/{served.able}"))


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
        ("link", {"round_trip_ms": 0.254}, "connected, round trip 0.25 ms, no heartbeat yet"),
        ("link", {"round_trip_ms": 121.5}, "connected, round trip 121.5 ms"),
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
            "CPU 12%, GPUs read 4 s ago",
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
            "linux, 8 cores, 32 GiB memory, driver 550, CUDA 12.4",
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
        detail = "as it should be" if ok else "x4 of x16"
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
        *(check(name, scope, ok=False) for name in ("pcie_link", "hook") for scope in ("GPU-11", "GPU-3")),
        check("gpu_model", "GPU-3", ok=False, required=False),
    ]
    gpus = [gpu(number, uuid=f"GPU-{number}") for number in (1, 2, 3, 11)]
    page = [words.split() for words in drawn(node(node_checks=checks, gpus=gpus)).splitlines()]
    begin = page.index(["ADMISSION", "CHECK", "OF", "AGE", "DETAIL"]) + 1
    rows = [" ".join(row) for row in page[begin : begin + 4]]
    assert rows == [
        "pcie_link, hook FAILS GPUs 3, 11 90 s x4 of x16",
        "gpu_model fails, not required GPU 3 90 s x4 of x16",
        "hook ok node 90 s as it should be",
        "pcie_link ok 2 GPUs 90 s as it should be",
    ]
    assert "ADMISSION" not in drawn(node())
