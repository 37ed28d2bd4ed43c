import re
from typing import Any

import pytest

from gpu_agent.cli.output.inventory import gpus_in_words
from gpu_agent.cli.output.nodes import (
    AUTH_OFF,
    PLAINTEXT,
    fleet_summary,
    node_table,
    warning_lines,
)
from gpu_agent.cli.output.text import plain_text
from gpu_agent.wire.api import GpuView, NodeList, NodeSummary
from gpu_agent.wire.codes import STATUS_COLOURS, NodeStatus
from tests.cli.answers import model_of

NOW = 1_000_000.0


def node(**fields: object) -> dict[str, Any]:
    return {
        "node_id": "node-1",
        "status": "ready",
        "reason_code": "health_checks_passed",
        "reason": "3 healthy heartbeats in a row",
        "since": NOW - 3 * 3600,
        "connected": True,
        "gpus": [{"name": "NVIDIA L4", "health": "ok"}],
        "installed_models": [{"model_id": "m", "status": "ready", "enabled": True}],
        "in_flight_jobs": 1,
        "max_concurrent_jobs": 4,
        "last_heartbeat_age_seconds": 2.4,
        **fields,
    }


def drawn(*nodes: dict[str, Any], columns: int | None = None, **more: object) -> str:
    answer = model_of(NodeList, {"nodes": nodes, **more})
    return "\n".join(plain_text(one) for one in node_table(answer, columns, now=NOW))


def test_a_row_says_who_how_since_when_and_how_full() -> None:
    cells = re.split(r" {2,}", drawn(node()).splitlines()[1])
    assert cells == ["node-1", "ready 3 h", "1x L4", "1", "1/4", "2 s"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"connected": False}, "disconnected"),
        ({"cordoned": "maintenance"}, "cordoned: maintenance"),
        ({"cordoned": ""}, "cordoned"),
        ({"simulated": True}, "1x L4 simulated"),
        ({"last_heartbeat_age_seconds": None}, " -"),
        ({"installed_models": [{"model_id": "m", "status": "error", "enabled": True}]}, "0/1"),
        ({"gpus": [{"name": "L4", "health": "lost"}]}, "1x L4 (1 not ok)"),
        ({"status": "degraded", "reason": "no GPU is usable"}, "degraded 3 h"),
        ({"status": "degraded", "reason": "no GPU is usable"}, "no GPU is usable"),
        (
            {"status": "degraded", "connected": False, "cordoned": "", "reason": "r"},
            "r; disconnected; cordoned",
        ),
    ],
)
def test_what_an_operator_must_know_is_shown(fields: dict[str, Any], words: str) -> None:
    assert words in drawn(node(**fields))


def test_a_ready_node_shows_no_reason() -> None:
    assert "healthy heartbeats" not in drawn(node())


def test_a_disconnected_offline_node_is_just_offline() -> None:
    assert "disconnected" not in drawn(node(status="offline", connected=False))


def test_a_nodes_words_cannot_act_on_the_terminal() -> None:
    assert "\x1b" not in drawn(node(status="degraded", reason="\x1b[2J", cordoned="\x1b[31m"))


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_it_fits_the_terminal(columns: int) -> None:
    nodes = (
        node(
            node_id="node-3ECEA4E2",
            simulated=True,
            gpus=[{"name": "NVIDIA H100 80GB HBM3", "health": "ok"}] * 8,
        ),
        node(
            node_id="node-7F00A1B2", status="registering", reason="2 more healthy heartbeats are needed " * 4
        ),
    )
    said = drawn(*nodes, columns=columns)
    assert max(map(len, said.splitlines())) <= columns
    assert "8x H100" in said


def test_on_a_terminal_it_is_summed_up() -> None:
    nodes = [node(), node(status="offline"), node(connected=False), node(status="degraded")]
    assert (
        fleet_summary([model_of(NodeSummary, one) for one in nodes])
        == "4 nodes: 2 ready, 1 degraded, 1 offline; 1 of 4 slots occupied"
    )
    assert drawn(node(), columns=80).endswith("\n1 node: 1 ready; 1 of 4 slots occupied")
    assert "slots" not in drawn(node())


def test_each_status_has_its_colour_and_its_rank() -> None:
    assert set(STATUS_COLOURS) == set(NodeStatus)


def test_a_status_of_a_newer_registry_is_counted_too() -> None:
    nodes = model_of(NodeList, {"nodes": [node(), node(status="quarantined")]}).nodes
    assert fleet_summary(nodes).startswith("2 nodes: 1 ready, 1 quarantined; ")


def test_auth_that_is_off_is_shown_first() -> None:
    assert drawn(node(), auth="off").startswith(f"{AUTH_OFF}\nNODE")
    assert drawn(auth="off") == AUTH_OFF
    assert warning_lines(model_of(NodeList, {})) == []


def test_a_port_that_is_not_encrypted_is_shown_first_in_every_list() -> None:
    assert drawn(node(), plaintext=True).startswith(f"{PLAINTEXT}\nNODE")
    assert drawn(auth="off", plaintext=True) == f"{AUTH_OFF}\n{PLAINTEXT}"


def test_gpus_are_counted_by_name() -> None:
    gpus = [{"name": "A"}, {"name": "A"}, {"name": "NVIDIA B", "health": "unknown"}]
    assert (
        gpus_in_words([model_of(GpuView, {"health": "ok", **gpu}) for gpu in gpus]) == "2x A, 1x B (1 not ok)"
    )
    cordoned = model_of(GpuView, {"name": "A", "health": "ok", "cordoned": "cordoned by ann: hot"})
    assert gpus_in_words([cordoned]) == "1x A (1 cordoned)"
    assert gpus_in_words([]) == "none"
