import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.main import main
from gpu_agent.session.types import State
from gpu_agent.wire.inventory import GpuReport, Outcome
from tests.cli.terminal import OnTerminal
from tests.node.control_harness import INVENTORY, FakeAgent, serving, snapshot


def test_the_page_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["status", "--socket", str(served.path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("node-A  ready  (health_checks_passed)\n")
    assert "\x1b" not in said


def test_a_terminal_gets_colours(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, OnTerminal("status", "--socket", str(served.path)) as shown:
        shown.await_words("No models")
        assert shown.wait() == 0
        assert "\x1b[32mready\x1b[0m" in shown.shown


def test_json_is_the_agents_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["status", "--json", "--socket", str(served.path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["ready"]) == ("gpu-agent.status/1", True)


def test_without_an_agent_it_ends_with_5_and_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--socket", str(tmp_path / "s")]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"gpu-agent: no agent answers at {tmp_path / 's'}: start it (`systemctl start")


def test_the_machine_is_probed_again_and_what_was_found_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
        assert served.agent.refreshed == 1
    assert capsys.readouterr().out == (
        "node-A has been probed: GPUs 1x L4; models ready 0; "
        "the registry receives it with the next heartbeat.\n"
    )


def test_a_driver_that_did_not_answer_the_probe_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent()
    agent.state = snapshot(probe_age_seconds=38.0)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
    said = capsys.readouterr().out
    assert "probed: GPUs 1x L4, as read 38 s ago: the driver does not answer; models ready 0;" in said


def test_a_machine_without_a_driver_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = FakeAgent()
    gpu = GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver: install it.")
    agent.state = snapshot(inventory=replace(INVENTORY, gpu=gpu))
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
    assert "probed: no driver: install it; the registry" in capsys.readouterr().out


def test_a_registry_that_is_away_is_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = FakeAgent()
    agent.state = snapshot(state=State.BACKING_OFF)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
    assert "the registry is not connected, and receives it when it is." in capsys.readouterr().out


def test_json_is_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["refresh", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["could_register"] is True
