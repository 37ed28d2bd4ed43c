from typing import Any

import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.nodes.facts import facts

NOW = 1_000_000.0
BARE: dict[str, Any] = {
    "node_id": "n",
    "status": "ready",
    "since": NOW - 300,
    "connected": True,
    "gpus": [],
    "in_flight_jobs": 0,
    "max_concurrent_jobs": 4,
    "last_beat_age_seconds": None,
}


def told(**more: object) -> dict[str, str]:
    return {name: plain(words) for name, words in facts({**BARE, **more}, now=NOW)}


def test_what_is_not_known_is_left_out() -> None:
    assert list(told()) == ["since", "link", "jobs", "gpus"]
    assert told()["link"] == "connected, no beat yet"


@pytest.mark.parametrize(
    ("fact", "fields", "words"),
    [
        ("since", {"previous_status": "degraded"}, "(5 min), degraded before that"),
        ("link", {"connected": False, "address": "10.0.0.7:9"}, "not connected now, last from 10.0.0.7:9"),
        ("link", {"round_trip_ms": 0.254}, "connected, 0.25 ms there and back, no beat yet"),
        ("link", {"round_trip_ms": 121.5}, "connected, 121.5 ms there and back"),
        ("link", {"round_trip_ms": 7.0, "connected": False}, "not connected, no beat yet"),
        (
            "link",
            {
                "last_beat_age_seconds": 3.2,
                "heartbeat_interval_seconds": 15.0,
                "heartbeat_timeout_seconds": 45.0,
            },
            "connected, last beat 3 s ago (one every 15 s; offline after 45 s)",
        ),
        ("jobs", {"claimed_jobs": ["a"], "running_jobs": None}, "0 of 4 places taken: a (claimed)"),
        (
            "jobs",
            {"claimed_jobs": ["a", "b"], "running_jobs": ["b", "c"]},
            "a (claimed, not begun), b (claimed, runs), c (runs without a claim)",
        ),
        ("jobs", {"accept_public_jobs": True}, "0 of 4 places taken; public jobs too"),
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
            "0123abcd, joined by 89abcdef",
        ),
        (
            "token",
            {"token": {"token_id": "0123abcd", "rotating": True, "joined_by": None}},
            "0123abcd; it is to have another, and has not connected with that yet",
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
def test_what_is_known_is_said(fact: str, fields: dict[str, Any], words: str) -> None:
    assert words in told(**fields)[fact]


def test_no_fact_can_act_on_a_terminal() -> None:
    said = told(labels={"\x1b": "\n"}, cordoned="\x07", features=["\x1b[2J"], endpoint="\x1b")
    assert all(words.isprintable() for words in said.values())
