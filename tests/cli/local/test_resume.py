import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.session.events import ResumeAsked
from gpu_agent.session.story import State
from gpu_agent.wire.messages import NodeStatusMessage
from tests.node.an_agent import AnAgent, picture, serving


def test_a_drained_machine_is_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = AnAgent()
    agent.stands = picture(state=State.DRAINED, drain_reason="new fans", drain_until=1e9)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--socket", str(served.path)]) == 0
    assert agent.orders == [ResumeAsked()]
    assert capsys.readouterr().out == "node-A registers; `gpu-agent status` shows what comes of it\n"


def test_json_is_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = AnAgent()
    agent.stands = picture(state=State.BACKING_OFF, next_attempt_at=1e9)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "gpu-agent.status/1"


@pytest.mark.parametrize(
    ("status", "words"),
    [("ready", "there is nothing to resume"), ("draining", "`gpu-agent registry resume node-A`")],
)
def test_what_is_not_the_owners_to_lift_is_refused_with_the_next_step(
    tmp_path: Path, status: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = AnAgent()
    agent.stands = picture(verdict=NodeStatusMessage(node_id="node-A", status=status, reason="so"))
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--socket", str(served.path)]) == 6
    assert words in capsys.readouterr().err
