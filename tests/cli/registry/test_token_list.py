import json
import time
from typing import Any

import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import standing_in

PATH = "GET /v1/tokens"


def token(**more: object) -> dict[str, Any]:
    return {
        "token_id": "3f9a01bc",
        "kind": "join",
        "state": "live",
        "created_at": time.time() - 7300,
        "expires_at": time.time() + 7300,
        "note": "",
        "uses": 8,
        "spent": 3,
        "labels": {},
        "node_id": None,
        "role": None,
        "name": "",
        **more,
    }


def listed(words: list[str], *tokens: dict[str, Any]) -> int:
    with standing_in({PATH: {"tokens": tokens, "count": len(tokens)}}) as registry:
        return main(["registry", "token", "list", *words, "--api", registry.api])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "3f9a01bc join live 3/8 2 h 2 h"),
        ({"uses": None, "expires_at": None}, "join live 3/any 2 h never"),
        ({"labels": {"zone": "a"}, "note": "new rack"}, "zone=a; new rack"),
        ({"node_id": "node-7"}, "reclaim live 3/8 2 h 2 h the id of node-7"),
        ({"kind": "operator", "role": "admin", "name": "alice"}, "operator live 2 h 2 h role admin; alice"),
    ],
)
def test_each_token_says_whom_it_lets_in(
    fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed([], token(**fields)) == 0
    assert words in " ".join(capsys.readouterr().out.split())


def test_those_that_have_ended_are_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed([], token(state="used_up")) == 0
    assert "--all" in capsys.readouterr().out
    assert listed(["--all"], token(state="used_up")) == 0
    assert "used up" in capsys.readouterr().out
    assert listed([]) == 0
    assert "No token was ever made" in capsys.readouterr().out


def test_json_is_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(["--json"], token(), token(state="revoked")) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2
