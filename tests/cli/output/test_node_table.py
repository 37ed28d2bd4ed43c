import re
from typing import Any

import pytest

from gpu_agent.cli.output.inventory import gpus_in_words
from gpu_agent.cli.output.nodes import (
    AUTH_OFF,
    DEFAULT_STYLE,
    PLAINTEXT,
    SORTS,
    ListStyle,
    fleet_summary,
    node_table,
    short_model,
    warning_lines,
)
from gpu_agent.cli.output.text import Line, plain_text
from gpu_agent.cli.registry.nodes import SORTS as OFFERED
from gpu_agent.wire.api import GpuView, NodeList, NodeSummary
from gpu_agent.wire.codes import STATUS_COLOURS, NodeStatus
from tests.cli.answers import model_of

NOW = 1_000_000.0


def gpu(number: int = 0, **fields: object) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}",
        "name": "NVIDIA L4",
        "health": "ok",
        "usable": fields.get("health", "ok") == "ok",
        **fields,
    }


def node(**fields: object) -> dict[str, Any]:
    return {
        "node_id": "node-1",
        "hostname": "gpu-01.example.com",
        "status": "ready",
        "reason_code": "health_checks_passed",
        "reason": "3 healthy heartbeats in a row",
        "since": NOW - 3 * 3600,
        "connected": True,
        "gpus": [gpu(memory_mb=24 * 1024, memory_used_mb=6 * 1024, utilization_percent=41.7)],
        "installed_models": [{"model_id": "m", "status": "ready", "enabled": True}],
        "in_flight_jobs": 1,
        "max_concurrent_jobs": 4,
        "last_heartbeat_age_seconds": 2.4,
        "agent_version": "0.2.0",
        **fields,
    }


def lines(*nodes: dict[str, Any], columns: int | None = None, style: ListStyle = DEFAULT_STYLE) -> list[Line]:
    return node_table(model_of(NodeList, {"nodes": nodes}), columns, now=NOW, style=style)


def drawn(
    *nodes: dict[str, Any], columns: int | None = None, style: ListStyle = DEFAULT_STYLE, **more: object
) -> str:
    answer = model_of(NodeList, {"nodes": nodes, **more})
    return "\n".join(plain_text(one) for one in node_table(answer, columns, now=NOW, style=style))


def cells(row: str) -> list[str]:
    return re.split(r" {2,}", row)


def style_of(words: str, drawn_lines: list[Line]) -> str:
    """Return the style of the first piece that has these words."""
    return next(piece.style for one in drawn_lines for piece in one if words in piece.text)


def test_a_row_says_which_machine_it_is_what_is_free_and_how_full_it_is() -> None:
    head, row = drawn(node()).splitlines()
    assert cells(head) == [
        *("HOST", "ID", "STATUS", "GPUS", "MEMORY", "LOAD", "SLOTS", "MODELS", "VERSION", "AGE"),
    ]
    assert cells(row) == [
        *("gpu-01.example.com", "node-1", "ready", "1/1 L4", "6/24 GiB", "42%", "1/4", "1", "0.2.0", "3 h"),
    ]


def test_a_wide_list_has_the_machines_figures_its_address_and_its_labels() -> None:
    wide = node(cpu_percent=12.2, mem_percent=30.0, address="10.0.0.7:9", labels={"zone": "a", "rack": "7"})
    said = drawn(wide, style=ListStyle(wide=True)).splitlines()
    assert cells(said[0])[-5:] == ["CPU", "RAM", "HEARTBEAT", "ADDRESS", "LABELS"]
    assert cells(said[1])[-5:] == ["12%", "30%", "2 s", "10.0.0.7:9", "rack=7 zone=a"]


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([gpu(0), gpu(1, claimed_by="j")], "1/2 L4"),
        ([gpu(0), gpu(1, shared_by=["j"])], "1/2 L4"),
        ([gpu(n, health="lost" if n < 4 else "ok") for n in range(7)], "3/7 L4, 4 lost"),
        ([gpu(0, health="degraded", usable=False)], "0/1 L4, 1 degraded"),
        ([gpu(0, health="degraded", usable=True)], "1/1 L4"),
        ([gpu(0, usable=False, reasons=["check_failed: pcie_link"])], "0/1 L4, 1 not usable"),
        ([gpu(0, held_for="j")], "0/1 L4, 1 held"),
        ([gpu(0, claimed_by="j", idle=True), gpu(1, claimed_by="j", idle=True)], "0/2 L4, 2 idle"),
        ([gpu(0, cordoned="by ann")], "0/1 L4, 1 cordoned"),
        ([gpu(0, processes=1)], "0/1 L4, 1 without a claim"),
        ([gpu(0), gpu(1, name="NVIDIA T4")], "2/2 1x L4, 1x T4"),
        ([], "none"),
    ],
)
def test_gpus_are_counted_by_what_they_are_used_for(gpus: list[dict[str, Any]], words: str) -> None:
    assert cells(drawn(node(gpus=gpus)).splitlines()[1])[3] == words


def test_the_parent_of_mig_devices_takes_no_job_and_its_figures_are_counted_once() -> None:
    parent = gpu(0, name="NVIDIA A100-SXM4-80GB", usable=False, memory_mb=80 * 1024, memory_used_mb=2048)
    devices = [
        gpu(n, name="NVIDIA A100-SXM4-80GB MIG 1g.10gb", parent_uuid="GPU-0", memory_mb=10 * 1024)
        for n in (1, 2)
    ]
    row = cells(drawn(node(gpus=[parent, *devices])).splitlines()[1])
    assert row[3:5] == ["2/2 A100 1g.10gb", "2/80 GiB"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla T4", "T4"),
        ("AMD Instinct MI300X", "MI300X"),
        ("80GB", "80GB"),
    ],
)
def test_a_short_name_is_that_of_the_model(name: str, short: str) -> None:
    assert short_model(name) == short


@pytest.mark.parametrize(
    ("fields", "colour"),
    [
        ({}, "green"),
        ({"gpus": [gpu(n, health="lost" if n < 4 else "ok") for n in range(7)]}, "yellow"),
        ({"gpus": [gpu(0, health="degraded", usable=True)]}, "yellow"),
        ({"cordoned": ""}, "yellow"),
        ({"connected": False}, "yellow"),
        ({"status": "degraded"}, STATUS_COLOURS["degraded"]),
        ({"status": "offline", "reason_code": "heartbeat_timeout"}, STATUS_COLOURS["offline"]),
        ({"status": "offline", "reason_code": "drain_complete"}, STATUS_COLOURS["draining"]),
    ],
)
def test_only_a_node_without_a_fault_is_plain_green(fields: dict[str, Any], colour: str) -> None:
    shown = node(**fields)
    assert style_of(shown["status"], lines(shown)) == colour


def test_unhealthy_gpus_are_red_and_held_ones_are_marked() -> None:
    table = lines(node(gpus=[gpu(0, health="lost"), gpu(1, held_for="j"), gpu(2)]))
    assert "red" in style_of("1 lost", table)
    assert style_of("1 held", table) == "yellow"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"connected": False}, "disconnected: last heartbeat 2 s ago"),
        ({"connected": False, "last_heartbeat_age_seconds": None}, "disconnected"),
        ({"cordoned": "maintenance"}, "cordoned: maintenance"),
        ({"cordoned": ""}, "cordoned"),
        ({"simulated": True}, "simulated"),
        ({"gpus": [gpu(reasons=["gpu_uuid_duplicate"])]}, "another node declares its GPUs"),
        ({"hostname": None}, "-     node-1"),
        ({"installed_models": [{"model_id": "m", "status": "error", "enabled": True}]}, "0/1"),
        ({"status": "degraded", "reason": "no GPU is usable"}, "no GPU is usable"),
        (
            {"status": "degraded", "connected": False, "cordoned": "", "reason": "r"},
            "r; disconnected: last heartbeat 2 s ago; cordoned",
        ),
    ],
)
def test_what_an_operator_must_know_is_shown(fields: dict[str, Any], words: str) -> None:
    assert words in drawn(node(**fields))


@pytest.mark.parametrize("fields", [{"status": "draining"}, {"cordoned": ""}, {"connected": False}])
def test_no_gpu_is_free_on_a_node_that_takes_no_jobs(fields: dict[str, Any]) -> None:
    assert "0/1 L4" in drawn(node(**fields))


def test_a_terminal_shows_hostnames_up_to_the_first_dot_where_that_is_enough() -> None:
    one, other = node(), node(node_id="node-2", hostname="gpu-01.example.org")
    assert drawn(one, columns=120).splitlines()[1].startswith("gpu-01  node-1")
    assert drawn(one, other, columns=120).splitlines()[1].startswith("gpu-01.example.com  node-1")
    address = node(hostname="10.0.0.7")
    assert drawn(address, columns=120).splitlines()[1].startswith("10.0.0.7  node-1")


def test_nodes_come_by_hostname_with_numbers_in_their_order() -> None:
    names = ["gpu-10", "gpu-2", None, "GPU-1"]
    rows = drawn(*(node(node_id=f"n{n}", hostname=name) for n, name in enumerate(names))).splitlines()[1:]
    assert [cells(row)[0] for row in rows] == ["GPU-1", "gpu-2", "gpu-10", "-"]


@pytest.mark.parametrize(
    ("column", "first"),
    [
        ("id", "a"),
        ("status", "b"),
        ("gpus", "c"),
        ("memory", "b"),
        ("load", "b"),
        ("slots", "c"),
        ("models", "c"),
        ("version", "a"),
        ("age", "b"),
    ],
)
def test_a_list_is_sorted_by_a_column(column: str, first: str) -> None:
    model = {"model_id": "m", "status": "ready", "enabled": True}
    full = gpu(memory_mb=1000, memory_used_mb=900, utilization_percent=90.0)
    nodes = (
        node(node_id="a", agent_version="0.9.0", installed_models=[], in_flight_jobs=4),
        node(
            node_id="b",
            agent_version="0.10.0",
            installed_models=[],
            gpus=[full],
            status="degraded",
            since=0.0,
            in_flight_jobs=4,
        ),
        node(node_id="c", agent_version="0.11.0", installed_models=[model] * 2, gpus=[gpu(0), gpu(1)]),
    )
    rows = drawn(*nodes, style=ListStyle(sort=column)).splitlines()[1:]
    assert cells(rows[0])[1] == first


def test_the_command_offers_every_order_that_there_is() -> None:
    assert tuple(SORTS) == OFFERED


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
            gpus=[gpu(number, name="NVIDIA H100 80GB HBM3") for number in range(8)],
        ),
        node(
            node_id="node-7F00A1B2", status="registering", reason="2 more healthy heartbeats are needed " * 4
        ),
    )
    said = drawn(*nodes, columns=columns)
    assert max(map(len, said.splitlines())) <= columns
    assert "8/8 H100" in said


def summed(*nodes: dict[str, Any]) -> str:
    return plain_text(fleet_summary([model_of(NodeSummary, one) for one in nodes]))


def test_on_a_terminal_it_is_summed_up() -> None:
    lost = [gpu(0, health="lost")]
    nodes = [node(), node(status="offline"), node(connected=False), node(status="degraded", gpus=lost)]
    assert summed(*nodes) == (
        "4 nodes: 2 ready, 1 degraded, 1 offline; 1 of 4 GPUs free, 1 lost; 1 of 4 slots occupied"
    )
    words = "1 node: 1 ready; 1 of 1 GPUs free; 1 of 4 slots occupied"
    assert drawn(node(), columns=80).endswith(f"\n{words}")
    assert drawn(node(simulated=True), columns=80).endswith(f"\n{words}; all simulated")
    assert "slots" not in drawn(node())


def test_each_status_has_its_colour_and_its_rank() -> None:
    assert set(STATUS_COLOURS) == set(NodeStatus)


def test_a_status_of_a_newer_registry_is_counted_too() -> None:
    assert summed(node(), node(status="quarantined")).startswith("2 nodes: 1 ready, 1 quarantined; ")


def test_auth_that_is_off_is_shown_first() -> None:
    assert drawn(node(), auth="off").startswith(f"{AUTH_OFF}\nHOST")
    assert drawn(auth="off") == AUTH_OFF
    assert warning_lines(model_of(NodeList, {})) == []


def test_a_port_that_is_not_encrypted_is_shown_first_in_every_list() -> None:
    assert drawn(node(), plaintext=True).startswith(f"{PLAINTEXT}\nHOST")
    assert drawn(auth="off", plaintext=True) == f"{AUTH_OFF}\n{PLAINTEXT}"


def test_gpus_are_counted_by_name() -> None:
    gpus = [{"name": "A"}, {"name": "A"}, {"name": "NVIDIA B", "health": "unknown"}]
    assert (
        gpus_in_words([model_of(GpuView, {"health": "ok", **gpu}) for gpu in gpus]) == "2x A, 1x B (1 not ok)"
    )
    cordoned = model_of(GpuView, {"name": "A", "health": "ok", "cordoned": "cordoned by ann: hot"})
    assert gpus_in_words([cordoned]) == "1x A (1 cordoned)"
    assert gpus_in_words([]) == "none"


@pytest.mark.parametrize("name", ["²", "gpu-²", "٣", "gpu-" + "9" * 40, "1²"])
def test_no_hostname_or_version_ends_the_list(name: str) -> None:
    odd, other = node(hostname=name, agent_version=name), node(node_id="node-2")
    for order in OFFERED:
        assert "node-2" in drawn(odd, other, columns=120, style=ListStyle(wide=True, sort=order))
