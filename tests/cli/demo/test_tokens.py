import stat
from pathlib import Path

import pytest

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.demo.tokens import operator_token, write_join_token
from gpu_agent.cli.outcome import Failure
from tests.programs import Registry


def test_a_true_registrys_tokens_are_read_and_made(tmp_path: Path) -> None:
    with Registry("--state-dir", str(tmp_path / "state"), auth="on") as registry:
        token = operator_token(tmp_path / "state")
        api = Api(registry.api, token=token)
        file = write_join_token(api, tmp_path / "join", uses=3)
        (own, join) = api.get("/v1/tokens")["tokens"]
    assert token.text.startswith("gpuo_")
    assert (own["role"], join["kind"], join["uses"]) == ("admin", "join", 3)
    assert file.read_text().startswith(f"gpuj_{join['token_id']}_")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_registry_that_left_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"no token in .*operator\.token"):
        operator_token(tmp_path)
