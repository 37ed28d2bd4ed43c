import time

import pytest

from gpu_agent.cli.main import main
from tests.cli.stand_in import standing_in

PATH = "GET /v1/members"


def member(name: str, role: str, *, nodes: int | None, lag: float | None = None) -> dict[str, object]:
    return {
        "name": name,
        "role": role,
        "url": None,
        "term": 7 if role == "leader" else None,
        "since": time.time() - 120.5,
        "nodes": nodes,
        "lag_seconds": lag,
    }


def test_the_leader_and_how_far_the_others_are_behind_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [member("one", "leader", nodes=3), member("two", "standby", nodes=2, lag=12.0)]
    with standing_in({PATH: {"members": listed}}) as registry:
        assert main(["registry", "members", "--server", registry.api]) == 0
    assert [row.split() for row in capsys.readouterr().out.splitlines()] == [
        ["MEMBER", "ROLE", "FOR", "NODES", "LAG"],
        ["one", "leader", "2", "min", "3", "-"],
        ["two", "standby", "2", "min", "2", "12", "s"],
    ]


def test_what_an_instance_without_a_leader_does_not_know_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [member("one", "standby", nodes=None), member("two", "standby", nodes=2)]
    with standing_in({PATH: {"members": listed}}) as registry:
        assert main(["registry", "members", "--server", registry.api]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [row.split()[-2:] for row in shown[1:3]] == [["-", "-"], ["2", "-"]]
    assert shown[3].startswith("No instance leads as far as this one knows")


def test_an_instance_that_does_not_reach_the_leader_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [member("one", "leader", nodes=None), member("two", "standby", nodes=2)]
    with standing_in({PATH: {"members": listed}}) as registry:
        assert main(["registry", "members", "--server", registry.api]) == 0
    assert capsys.readouterr().out.splitlines()[3].startswith("This instance does not reach the leader")
