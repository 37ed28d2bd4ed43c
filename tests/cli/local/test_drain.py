import json
import signal
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.session.events import DrainAsked
from gpu_agent.session.story import State
from tests.cli.a_terminal import OnTerminal
from tests.node.an_agent import AnAgent, picture, serving


def test_the_owners_word_reaches_the_agent_with_its_reason_and_its_deadline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        words = ["--deadline", "10m", "--reason", "new fans", "--socket", str(served.path)]
        assert main(["drain", *words]) == 0
        assert served.agent.orders == [DrainAsked("new fans", 600)]
    assert capsys.readouterr().out.startswith("node-A drains: new fans; no job is announced; over in")


def test_json_is_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["drain", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["drain"]["reason"] == "its owner drains it"


def test_its_end_can_be_waited_for(tmp_path: Path) -> None:
    agent = AnAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        OnTerminal("drain", "--wait", "--reason", "new fans", "--socket", str(served.path)) as drain,
    ):
        drain.await_words("node-A drains, no job is announced")
        agent.stands = picture(state=State.DRAINED, drain_reason="new fans", drain_until=1e9)
        drain.await_words("node-A is drained: new fans")
        assert drain.wait() == 0


def test_whoever_stops_waiting_is_told_that_the_drain_goes_on(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "s") as served,
        OnTerminal("drain", "--wait", "--socket", str(served.path)) as drain,
    ):
        drain.await_words("node-A drains")
        drain.send(signal.SIGINT)
        assert drain.wait() == 130
        assert "the drain goes on; `gpu-agent resume` would lift it" in drain.shown


@pytest.mark.parametrize("words", [["--deadline", "10"], ["--deadline", "soon"]])
def test_a_deadline_without_a_unit_is_refused(tmp_path: Path, words: list[str]) -> None:
    assert main(["drain", *words, "--socket", str(tmp_path / "s")]) == 4
