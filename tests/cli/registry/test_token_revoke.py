import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import Answer, Refusal, standing_in

TOKENS = {"tokens": [{"token_id": "3f9a01bc", "kind": "join", "state": "live", "created_at": 0.0}]}


def test_a_token_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({"DELETE /v1/tokens/3f9a01bc": None}) as registry:
        assert main(["registry", "token", "revoke", "3f9a01bc", "--api", registry.api]) == 0
        assert capsys.readouterr().out == "token 3f9a01bc opens nothing any more\n"
        assert main(["registry", "token", "revoke", "3f9a01bc", "--json", "--api", registry.api]) == 0
        assert capsys.readouterr().out == ""


def test_one_that_is_not_known_is_refused_with_those_near_it(capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Answer] = {
        "DELETE /v1/tokens/3f9a01bd": Refusal(404, "UNKNOWN_TOKEN", "no token '3f9a01bd' is known"),
        "GET /v1/tokens": TOKENS,
    }
    with standing_in(answers) as registry:
        assert main(["registry", "token", "revoke", "3f9a01bd", "--api", registry.api]) == 6
    said = capsys.readouterr().err
    assert "did you mean 3f9a01bc?" in said


def test_another_refusal_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({"DELETE /v1/tokens/x": Refusal(503, "REGISTRY_BUSY", "ask again")}) as registry:
        assert main(["registry", "token", "revoke", "x", "--api", registry.api]) == 6
    assert capsys.readouterr().err == "gpu-agent: ask again\n"
