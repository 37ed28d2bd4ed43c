import time
from collections.abc import Mapping

import pytest

from gpu_agent.cli.main import main
from tests.cli.stand_in import Refusal, standing_in

PATH = "GET /v1/receivers"


def receiver(name: str, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "format": "json",
        "target": "https://hooks.example",
        "state": "idle",
        "position": 7,
        "waiting": 0,
        "lag_seconds": None,
        "failures": 0,
        "problem": None,
        "delivered_at": None,
        "next_attempt_seconds": None,
        **more,
    }


def test_what_waits_for_each_receiver_and_why_one_fails_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    failing = {"state": "waiting", "waiting": 12, "lag_seconds": 300.0, "next_attempt_seconds": 40.0}
    at = time.time() - 5
    listed = [
        receiver("ops", delivered_at=at),
        receiver("chat", format="slack", problem="hooks.slack.com answers HTTP 404", **failing),
    ]
    with standing_in({PATH: {"receivers": listed}}) as registry:
        assert main(["registry", "notify", "list", "--server", registry.api]) == 0
    assert [row.split() for row in capsys.readouterr().out.splitlines()] == [
        ["RECEIVER", "FORMAT", "STATE", "WAITING", "LAG", "DELIVERED", "NEXT"],
        ["ops", "json", "idle", "0", "-", time.strftime("%H:%M:%S", time.localtime(at)), "-"],
        ["chat", "slack", "waiting", "12", "5", "min", "not", "since", "the", "start", "40", "s"],
        ["chat:", "hooks.slack.com", "answers", "HTTP", "404"],
    ]


def test_without_receivers_the_next_step_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({PATH: {"receivers": []}}) as registry:
        assert main(["registry", "notify", "list", "--server", registry.api]) == 0
        assert main(["registry", "notify", "test", "--server", registry.api]) == 1
    shown = capsys.readouterr()
    assert "[[notify]]" in shown.out
    assert "[[notify]]" in shown.err


def test_each_receiver_is_tried_and_one_that_fails_fails_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: dict[str, Mapping[str, object] | Refusal] = {
        PATH: {"receivers": [receiver("ops"), receiver("chat")]},
        "POST /v1/receivers/ops/test": {"name": "ops", "delivered": True, "problem": None, "seconds": 0.2},
        "POST /v1/receivers/chat/test": {
            "name": "chat",
            "delivered": False,
            "problem": "x answers HTTP 403",
            "seconds": 0.1,
        },
    }
    with standing_in(answers) as registry:
        assert main(["registry", "notify", "test", "--server", registry.api]) == 1
        assert main(["registry", "notify", "test", "ops", "--server", registry.api]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ops: took the message, in 0.2 s",
        "chat: x answers HTTP 403",
        "ops: took the message, in 0.2 s",
    ]


def test_a_receiver_that_there_is_not_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: dict[str, Mapping[str, object] | Refusal] = {
        PATH: {"receivers": [receiver("ops-slack")]},
        "POST /v1/receivers/ops/test": Refusal(404, "UNKNOWN_RECEIVER", "see GET /v1/receivers"),
    }
    with standing_in(answers) as registry:
        assert main(["registry", "notify", "test", "ops", "--server", registry.api]) == 6
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "no receiver of alarms is called 'ops': see `gpu-agent registry notify list`; "
            "did you mean ops-slack?"
        )
    )
