from typing import Any

import pytest

from gpu_agent.cli.local import own_drain
from gpu_agent.cli.local.own_drain import drain_in_words, until_drained, who
from gpu_agent.cli.outcome import Failure


def stands(drain: dict[str, Any] | None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - parts of JSON
    jobs = {"announced": True, "in_flight": [{"job_id": "j"}]}
    return {"node_id": "node-A", "connected": True, "jobs": jobs, "drain": drain, **more}


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
                "the registry is not connected, and hears of it when it is"
            ),
        ),
        (stands(drains(over=True)), "node-A is drained: new fans; `gpu-agent resume` takes it back"),
    ],
)
def test_how_it_stands_is_said_in_a_sentence(now: dict[str, Any], words: str) -> None:
    assert drain_in_words(now) == words


def test_a_reason_cannot_steer_the_terminal() -> None:
    now = stands({**drains(), "reason": "x\x1b[2J"}, node_id="n\x1b")
    assert "\x1b" not in drain_in_words(now) + who(now)


def test_its_end_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(own_drain, "LOOK_SECONDS", 0)
    coming = iter([stands(drains()), stands(drains(over=True))])
    assert until_drained(lambda: next(coming), stands(drains()), quiet=False)["drain"]["over"]
    assert capsys.readouterr().err == "node-A drains, 1 job in flight\n"


def test_a_drain_that_is_lifted_meanwhile_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_drain, "LOOK_SECONDS", 0)
    with pytest.raises(Failure, match="lifted meanwhile"):
        until_drained(lambda: stands(None), stands(drains()), quiet=True)
