import os
import signal

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.demo import demo
from gpu_agent.cli.demo.fleet import Fleet
from gpu_agent.cli.demo.walk import Walk
from gpu_agent.cli.outcome import Failure


def test_a_walk_that_fails_exits_non_zero_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_self: Walk) -> None:
        raise Failure("no node became ready")

    monkeypatch.setattr(Walk, "all_steps", fails)
    assert main(["demo", "--once"]) == 1
    assert "no node became ready" in capsys.readouterr().err


def test_whose_gpus_the_demo_uses_is_said_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Walk, "all_steps", lambda _self: None)
    assert main(["demo", "--once"]) == 0
    said = capsys.readouterr().out
    assert "simulate" in said or "own GPUs" in said


def test_the_live_table_shows_the_nodes_until_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[object] = []

    def once(answer: object, *_: object, **__: object) -> str:
        drawn.append(answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "node_lines", once)
    assert main(["demo"]) == 0
    assert drawn
    assert "Ended" in capsys.readouterr().out


def test_a_registry_that_was_killed_is_blamed_and_not_its_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killing(fleet: Fleet, *_: object) -> None:
        os.kill(fleet.processes[0].process.pid, signal.SIGKILL)
        while True:
            fleet.api.get("/v1/nodes")

    monkeypatch.setattr(demo, "_watch", killing)
    assert main(["demo"]) == 1
    assert "the demo's registry ended with -9" in capsys.readouterr().err
