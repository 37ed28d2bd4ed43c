import json
import signal
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.agent import drain_progress as agent_drain
from gpu_agent.cli.agent.drain_progress import drain_in_words, node_name, wait_until_drained
from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.command import Failure
from gpu_agent.cli.main import main
from gpu_agent.session.types import DrainRequested, ResumeRequested, State
from gpu_agent.wire.control import StatusDocument
from gpu_agent.wire.messages import NodeStatusMessage
from tests.cli.answers import answer_of
from tests.cli.terminal import OnTerminal
from tests.node.control_harness import FakeAgent, serving, snapshot


def test_the_drain_reaches_the_agent_with_its_reason_and_its_deadline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        words = ["--deadline", "10m", "--reason", "new fans", "--socket", str(served.path)]
        assert main(["drain", *words]) == 0
        assert served.agent.requests == [DrainRequested("new fans", 600)]
    assert capsys.readouterr().out.startswith("node-A drains: new fans; no job is announced; over in")


def test_json_is_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["drain", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["drain"]["reason"] == "its owner drains it"


def test_its_end_can_be_waited_for(tmp_path: Path) -> None:
    agent = FakeAgent()
    with (
        serving(tmp_path / "s", agent=agent) as served,
        OnTerminal("drain", "--wait", "--reason", "new fans", "--socket", str(served.path)) as drain,
    ):
        drain.await_words("node-A drains, no job is announced")
        agent.state = snapshot(state=State.DRAINED, drain_reason="new fans", drain_until=1e9)
        drain.await_words("node-A is drained: new fans")
        assert drain.wait() == 0


def test_an_interrupted_wait_says_that_the_drain_goes_on(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "s") as served,
        OnTerminal("drain", "--wait", "--socket", str(served.path)) as drain,
    ):
        drain.await_words("node-A drains")
        drain.send(signal.SIGINT)
        assert drain.wait() == 130
        assert "the drain goes on; `gpu-agent resume` would end it" in drain.shown


@pytest.mark.parametrize("words", [["--deadline", "10"], ["--deadline", "soon"]])
def test_a_deadline_without_a_unit_is_refused(tmp_path: Path, words: list[str]) -> None:
    assert main(["drain", *words, "--socket", str(tmp_path / "s")]) == 4


@pytest.mark.parametrize(
    ("state", "when"), [(State.REGISTERED, ""), (State.BACKING_OFF, " once the registry answers")]
)
def test_a_drained_machine_is_resumed(
    tmp_path: Path, state: State, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent()
    agent.state = snapshot(state=State.DRAINED, drain_reason="new fans", drain_until=1e9)
    agent.resumed = snapshot(state=state)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--socket", str(served.path)]) == 0
    assert agent.requests == [ResumeRequested()]
    assert capsys.readouterr().out == f"node-A registers{when}; `gpu-agent status` shows the result\n"


def test_json_is_the_status__resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = FakeAgent()
    agent.state = snapshot(state=State.BACKING_OFF, next_attempt_at=1e9)
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--json", "--socket", str(served.path)]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "gpu-agent.status/1"


@pytest.mark.parametrize(
    ("status", "words"),
    [("ready", "there is nothing to resume"), ("draining", "`gpu-agent registry node resume node-A`")],
)
def test_what_is_not_the_owners_to_lift_is_refused_with_the_next_step(
    tmp_path: Path, status: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = FakeAgent()
    agent.state = snapshot(registry_status=NodeStatusMessage(node_id="node-A", status=status, reason="so"))
    with serving(tmp_path / "s", agent=agent) as served:
        assert main(["resume", "--socket", str(served.path)]) == 6
    assert words in capsys.readouterr().err


def stands(drain: dict[str, Any] | None, **more: Any) -> Answer[StatusDocument]:  # noqa: ANN401 - parts of JSON
    jobs = {"announced": True, "in_flight": [{"job_id": "j"}]}
    given = {"node_id": "node-A", "connected": True, "jobs": jobs, "drain": drain, **more}
    return answer_of(StatusDocument, given)


def drains(*, over: bool = False, left: float | None = 600.0) -> dict[str, Any]:
    return {"reason": "new fans", "over": over, "deadline_in_seconds": left, "deadline_at": 1e9}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (stands(None), "node-A is not drained"),
        (stands(drains()), "node-A drains: new fans; 1 job in flight; over in 10 min at the latest"),
        (
            stands(drains(left=None), jobs={"announced": False, "in_flight": []}),
            "node-A drains: new fans; no job is announced",
        ),
        (
            stands(drains(), connected=False, node_id=None),
            (
                "This machine drains: new fans; 1 job in flight; over in 10 min at the latest; "
                "the registry is not connected, and receives it when it is"
            ),
        ),
        (
            stands(drains(over=True)),
            "node-A is drained: new fans; `gpu-agent resume` puts it back into service",
        ),
    ],
)
def test_the_state_of_a_drain_is_a_sentence(now: Answer[StatusDocument], words: str) -> None:
    assert drain_in_words(now.model) == words


def test_a_reason_cannot_steer_the_terminal() -> None:
    now = stands({**drains(), "reason": "x\x1b[2J"}, node_id="n\x1b")
    assert "\x1b" not in drain_in_words(now.model) + node_name(now.model)


def test_its_end_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(agent_drain, "POLL_SECONDS", 0)
    coming = iter([stands(drains()), stands(drains(over=True))])
    drained = wait_until_drained(lambda: next(coming), stands(drains()), quiet=False).model.drain
    assert drained is not None
    assert drained.over
    assert capsys.readouterr().err == "node-A drains, 1 job in flight, 10 min left\n"


def test_a_resume_meanwhile_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_drain, "POLL_SECONDS", 0)
    with pytest.raises(Failure, match="ended meanwhile"):
        wait_until_drained(lambda: stands(None), stands(drains()), quiet=True)
