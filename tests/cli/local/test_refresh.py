import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.session.story import State
from gpu_agent.wire.inventory import GpuReport, Outcome
from tests.node.an_agent import INVENTORY, AnAgent, picture, serving


def test_the_machine_is_probed_anew_and_what_was_found_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
        assert served.agent.refreshed == 1
    assert capsys.readouterr().out == (
        "node-A has been probed anew: GPUs 1x L4; models ready 0; the registry is told with the next beat.\n"
    )


def test_a_machine_without_a_driver_is_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = AnAgent()
    gpu = GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver: install it.")
    agent.stands = picture(inventory=replace(INVENTORY, gpu=gpu))
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
    assert "probed anew: no driver: install it; the registry" in capsys.readouterr().out


def test_while_the_registry_is_away_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = AnAgent()
    agent.stands = picture(state=State.BACKING_OFF)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["refresh", "--socket", str(served.path)]) == 0
    assert "the registry is not connected, and is told when it is." in capsys.readouterr().out


def test_json_is_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["refresh", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["could_register"] is True
