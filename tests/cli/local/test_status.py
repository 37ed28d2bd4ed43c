import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from tests.cli.a_terminal import OnTerminal
from tests.node.an_agent import serving


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
