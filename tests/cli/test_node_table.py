import io
from typing import Any

import pytest
from rich.console import Console

from gpu_agent.cli.node_table import gpus_in_words, node_table


def node(**fields: object) -> dict[str, Any]:
    return {
        "node_id": "node-1",
        "status": "ready",
        "reason_code": "health_checks_passed",
        "reason": "3 healthy beats in a row",
        "connected": True,
        "gpus": [{"name": "NVIDIA L4", "health": "ok"}],
        "installed_models": [{"model_id": "m", "status": "ready", "enabled": True}],
        "in_flight_jobs": 1,
        "max_concurrent_jobs": 4,
        "last_beat_age_seconds": 2.4,
        **fields,
    }


def drawn(*nodes: dict[str, Any]) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(node_table(nodes))
    return capture.get()


def test_a_row_says_who_how_why_and_how_full() -> None:
    said = drawn(node())
    for words in ("node-1", "ready", "3 healthy beats", "1x NVIDIA L4", "1 ready", "1/4", "2 s ago"):
        assert words in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"connected": False}, "disconnected"),
        ({"cordoned": "maintenance"}, "cordoned"),
        ({"simulated": True}, "simulated"),
        ({"last_beat_age_seconds": None}, "never"),
        ({"installed_models": [{"model_id": "m", "status": "error"}]}, "0 of 1 ready"),
        ({"gpus": [{"name": "L4", "health": "lost"}]}, "1x L4 (1 not ok)"),
    ],
)
def test_what_an_operator_must_know_is_said(fields: dict[str, Any], words: str) -> None:
    assert words in drawn(node(**fields))


def test_a_disconnected_offline_node_is_just_offline() -> None:
    assert "disconnected" not in drawn(node(status="offline", connected=False))


def test_a_nodes_words_cannot_style_the_terminal() -> None:
    assert "[red]" in drawn(node(reason="[red]not markup[/red]"))


def test_gpus_are_counted_by_name() -> None:
    gpus = [{"name": "A"}, {"name": "A"}, {"name": "B", "health": "unknown"}]
    assert gpus_in_words(gpus) == "2x A, 1x B (1 not ok)"
    assert gpus_in_words([]) == "none"
