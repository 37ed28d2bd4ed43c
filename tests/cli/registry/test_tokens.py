import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.declaration import option
from gpu_agent.cli.main import main
from gpu_agent.cli.registry.tokens import (
    lifetime_in_words,
    out_options,
    parse_ttl,
    print_new_token,
    secret_file,
    ttl_field,
)
from gpu_agent.wire.api import NewToken
from tests.cli.answers import answer_of, model_of
from tests.cli.conftest import Served
from tests.cli.given import given
from tests.cli.stand_in import Answer, Refusal, standing_in

PATH = "POST /v1/tokens"
MADE = {"token_id": "3f9a01bc", "token": "gpuj_3f9a01bc_x", "expires_at": None}


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        ([], {"kind": "join"}, "1 node may join with it"),
        (
            ["--ttl", "7d", "--uses", "8", "--label", "zone=a", "--label", "rack=7", "--note", "new rack"],
            {
                "kind": "join",
                "ttl_seconds": 604800.0,
                "uses": 8,
                "labels": {"zone": "a", "rack": "7"},
                "note": "new rack",
            },
            "8 nodes may join with it until it is revoked, each with the label zone=a, rack=7",
        ),
        (
            ["--ttl", "never", "--uses", "any"],
            {"kind": "join", "ttl_seconds": None, "uses": None},
            "any number of nodes",
        ),
        (
            ["--node", "node-7", "--uses", "any"],
            {"kind": "join", "uses": None, "node_id": "node-7"},
            "node node-7, any number of times, may join with it",
        ),
        (["--node", "node-7"], {"kind": "join", "node_id": "node-7"}, "node node-7, once, may join with it"),
        (
            ["--operator", "operate", "--name", "alice", "--ttl", "30d"],
            {"kind": "operator", "role": "operate", "name": "alice", "ttl_seconds": 2592000.0},
            "of alice, role operate",
        ),
    ],
)
def test_what_is_requested_is_created_and_explained(
    words: list[str], body: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "token", "create", *words, "--server", registry.api]) == 0
        assert registry.bodies(PATH) == [body]
    shown = capsys.readouterr()
    assert shown.out == "gpuj_3f9a01bc_x\n"
    assert said in shown.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--ttl", "24"], "24h"),
        (["--uses", "0"], "at least 1"),
        (["--uses", "few"], "'few' is no whole number"),
        (["--label", "zone"], "zone=a"),
        (["--name", "alice"], "--operator ROLE"),
        (["--operator", "boss"], "admin"),
        (["--operator", "read", "--uses", "2", "--note", "x"], "--uses, --note: only for join tokens"),
        (["--out", "/nowhere/token"], "--out FILE"),
    ],
)
def test_what_makes_no_sense_makes_no_token(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "token", "create", *words, "--server", registry.api]) == 4
        assert registry.asked == []
    assert hint in capsys.readouterr().err


def test_a_token_in_a_file_names_the_file_in_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "join.token"
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "token", "create", "--out", str(path), "--server", registry.api]) == 0
    printed = capsys.readouterr().err
    assert f"--join-token-file {path}" in printed
    assert "put it into /etc/gpu-agent/join-token (mode 0600), then run `systemctl restart" in printed


TOKEN_LIST_PATH = "GET /v1/tokens"


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
    with standing_in({TOKEN_LIST_PATH: {"tokens": tokens, "count": len(tokens)}}) as registry:
        return main(["registry", "token", "list", *words, "--server", registry.api])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "3f9a01bc join live 3/8 2 h 2 h"),
        ({"uses": None, "expires_at": None}, "join live 3/any 2 h never"),
        ({"labels": {"zone": "a"}, "note": "new rack"}, "zone=a; new rack"),
        ({"node_id": "node-7"}, "readmit live 3/8 2 h 2 h the id of node-7"),
        ({"kind": "operator", "role": "admin", "name": "alice"}, "operator live 2 h 2 h role admin; alice"),
    ],
)
def test_each_token_says_whom_it_lets_in(
    fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed([], token(**fields)) == 0
    assert words in " ".join(capsys.readouterr().out.split())


def test_ended_tokens_are_shown_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed([], token(state="used_up")) == 0
    assert "--all" in capsys.readouterr().out
    assert listed(["--all"], token(state="used_up")) == 0
    assert "used up" in capsys.readouterr().out
    assert listed([]) == 0
    assert "No token was ever created" in capsys.readouterr().out


def test_json_is_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(["--json"], token(), token(state="revoked")) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2


TOKENS = {"tokens": [{"token_id": "3f9a01bc", "kind": "join", "state": "live", "created_at": 0.0}]}


def test_a_token_is_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({"DELETE /v1/tokens/3f9a01bc": None}) as registry:
        assert main(["registry", "token", "revoke", "3f9a01bc", "--server", registry.api]) == 0
        assert capsys.readouterr().out == "token 3f9a01bc is revoked\n"
        assert main(["registry", "token", "revoke", "3f9a01bc", "--json", "--server", registry.api]) == 0
        assert capsys.readouterr().out == ""


def test_one_that_is_not_known_is_refused_with_those_near_it(capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Answer] = {
        "DELETE /v1/tokens/3f9a01bd": Refusal(404, "UNKNOWN_TOKEN", "no token '3f9a01bd' is known"),
        "GET /v1/tokens": TOKENS,
    }
    with standing_in(answers) as registry:
        assert main(["registry", "token", "revoke", "3f9a01bd", "--server", registry.api]) == 6
    said = capsys.readouterr().err
    assert "did you mean 3f9a01bc?" in said


def test_another_refusal_is_reported_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({"DELETE /v1/tokens/x": Refusal(503, "REGISTRY_BUSY", "ask again")}) as registry:
        assert main(["registry", "token", "revoke", "x", "--server", registry.api]) == 6
    assert capsys.readouterr().err == "gpu-agent: ask again\n"


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        ([], {"revoke_now": False}, "gets another token now"),
        (["--revoke-now"], {"revoke_now": True}, "gpu-agent registry node readmit node-7"),
    ],
)
def test_what_follows_is_shown(
    words: list[str], body: dict[str, bool], said: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Api(served.api).request("GET", f"/v1/nodes/{served.able}") | {"node_id": "node-7"}
    path = "POST /v1/nodes/node-7/rotate"
    with standing_in({path: node}) as registry:
        assert main(["registry", "token", "rotate", "node-7", *words, "--server", registry.api]) == 0
        assert said in capsys.readouterr().out
        assert (
            main(["registry", "token", "rotate", "node-7", *words, "--json", "--server", registry.api]) == 0
        )
        assert json.loads(capsys.readouterr().out) == node
        assert registry.bodies(path) == [body, body]


def test_a_node_that_is_away_gets_it_when_it_comes_back(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Api(served.api).request("GET", f"/v1/nodes/{served.able}") | {"connected": False}
    with standing_in({"POST /v1/nodes/n/rotate": node}) as registry:
        assert main(["registry", "token", "rotate", "n", "--server", registry.api]) == 0
    assert "when it next registers" in capsys.readouterr().out


RECLAIM_PATH = "POST /v1/nodes/node-7/reclaim"


def test_the_reclaim_token_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in({RECLAIM_PATH: MADE}) as registry:
        assert main(["registry", "node", "readmit", "node-7", "--server", registry.api]) == 0
        assert main(["registry", "node", "readmit", "node-7", "--ttl", "1h", "--server", registry.api]) == 0
        assert registry.bodies(RECLAIM_PATH) == [{}, {"ttl_seconds": 3600.0}]
    said = capsys.readouterr()
    assert said.out == "gpuj_3f9a01bc_x\n" * 2
    assert "gives node-7 its id back, once" in said.err


def print_with(*words: str) -> None:
    options = [*out_options(), option("--json", help="JSON", flag=True)]
    print_new_token(
        given(options, *words), lambda: answer_of(NewToken, MADE), lambda token: f"About {token.token_id}."
    )


def test_stdout_holds_the_token_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_with()
    said = capsys.readouterr()
    assert said.out == "gpuj_3f9a01bc_x\n"
    assert said.err.startswith("About 3f9a01bc.\nIt is shown this once")
    assert "registry token revoke 3f9a01bc" in said.err
    assert "gpuj_" not in said.err


def test_in_a_file_it_is_shown_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t"
    print_with("--out", str(path))
    print_with("--out", str(path), "--json", "--force")
    said = capsys.readouterr()
    assert path.read_text() == "gpuj_3f9a01bc_x\n"
    assert "gpuj_" not in said.out + said.err
    assert json.loads(said.out) == {**MADE, "token": None, "file": str(path)}


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("the only copy of another")
    with pytest.raises(Failure, match="--force") as failed:
        print_with("--out", str(path))
    assert failed.value.code is ExitCode.CONFIGURATION
    assert path.read_text() == "the only copy of another"
    print_with("--out", str(path), "--force")
    assert path.read_text() == "gpuj_3f9a01bc_x\n"


def test_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    print_with("--json")
    said = capsys.readouterr()
    assert json.loads(said.out) == MADE
    assert said.err == ""


def test_how_long_it_may_be_used_is_a_length_or_never() -> None:
    assert ttl_field(None) == {}
    assert ttl_field(parse_ttl("24h")) == {"ttl_seconds": 86400.0}
    assert ttl_field(parse_ttl("never")) == {"ttl_seconds": None}
    with pytest.raises(ValueError, match="90s, 10m, 24h or 7d, or never"):
        parse_ttl("soon")


def test_its_end_is_shown() -> None:
    assert lifetime_in_words(model_of(NewToken, MADE)) == "until it is revoked"
    assert lifetime_in_words(model_of(NewToken, {"expires_at": time.time() + 86400})) == "for 24 h"


def test_a_secret_is_its_owners_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "join.token"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        with secret_file(path) as write:
            write("gpuj_x")
    finally:
        os.umask(before)
    assert path.read_text() == "gpuj_x\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_that_was_not_made_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "join.token"
    path.write_text("old")
    with pytest.raises(RuntimeError), secret_file(path):
        raise RuntimeError("refused")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_place_for_it_is_reported_before_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--out FILE") as failed, secret_file(tmp_path / "nowhere" / "t"):
        pytest.fail("the block was entered")
    assert failed.value.code is ExitCode.CONFIGURATION


def test_a_folder_in_its_place_is_reported(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is a directory: name a file in it") as failed, secret_file(tmp_path):
        pytest.fail("the block was entered")
    assert failed.value.code is ExitCode.CONFIGURATION
    assert list(tmp_path.iterdir()) == []
