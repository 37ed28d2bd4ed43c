import json
from pathlib import Path

import pytest

from gpu_agent.cli.main import main
from gpu_agent.session.types import State
from tests.cli.terminal import terminal
from tests.node.control_harness import FakeAgent, serving, snapshot


def test_a_ready_machine_takes_jobs_and_what_only_the_registry_knows_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["explain", "--socket", str(served.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "node-A takes every job that fits it"
    assert lines[-1].startswith("Only the registry knows whether an operator has cordoned it; which slots")
    assert lines[-1].endswith("Ask it: gpu-agent registry explain node node-A")


def test_while_the_registry_is_away_that_is_why_no_job_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent()
    agent.state = snapshot(state=State.BACKING_OFF, last_refusal="connection refused", next_attempt_at=1e9)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["explain", "--socket", str(served.path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("node-A takes no job now\n")
    assert "disconnected" in said
    why = "it waits to try again: connection refused"
    assert f"{why}; clears when: it is connected; it tries again in" in said


def test_a_machine_without_an_id_is_named_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = FakeAgent()
    agent.state = snapshot(state=State.WAITING_GPU, node_id=None, registry_status=None, inventory=None)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["explain", "--socket", str(served.path)]) == 0
    assert capsys.readouterr().out.startswith("This machine takes no job now\n")


def test_on_a_terminal_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "s") as served, terminal(monkeypatch, "stdout", columns=50) as seen:
        assert main(["explain", "--socket", str(served.path)]) == 0
        assert "takes every job" in seen.said()


def test_json_is_the_agents_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["explain", "--json", "--socket", str(served.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["exclusions"]) == ("gpu-agent.explain/1", [])


def test_without_an_agent_it_ends_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--socket", str(tmp_path / "s")]) == 5
    assert "no agent answers at" in capsys.readouterr().err
