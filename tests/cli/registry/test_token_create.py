from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.app import main
from tests.cli.stand_in import standing_in

PATH = "POST /v1/tokens"
MADE = {"token_id": "3f9a01bc", "token": "gpuj_3f9a01bc_x", "expires_at": None}


@pytest.mark.parametrize(
    ("words", "body", "said"),
    [
        ([], {"kind": "join"}, "1 node may join by it"),
        (
            ["--ttl", "7d", "--uses", "8", "--labels", "zone=a", "--labels", "rack=7", "--note", "new rack"],
            {
                "kind": "join",
                "ttl_seconds": 604800.0,
                "uses": 8,
                "labels": {"zone": "a", "rack": "7"},
                "note": "new rack",
            },
            "8 nodes may join by it until it is revoked, each with the label zone=a, rack=7",
        ),
        (
            ["--ttl", "never", "--uses", "any"],
            {"kind": "join", "ttl_seconds": None, "uses": None},
            "any number of nodes",
        ),
        (
            ["--node", "node-7", "--uses", "any"],
            {"kind": "join", "uses": None, "node_id": "node-7"},
            "node node-7, any number of times, may join by it",
        ),
        (["--node", "node-7"], {"kind": "join", "node_id": "node-7"}, "node node-7, once, may join by it"),
        (
            ["--operator", "operate", "--name", "alice", "--ttl", "30d"],
            {"kind": "operator", "role": "operate", "name": "alice", "ttl_seconds": 2592000.0},
            "of alice, role operate",
        ),
    ],
)
def test_what_is_asked_for_is_made_and_explained(
    words: list[str], body: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "token", "create", *words, "--api", registry.api]) == 0
        assert registry.bodies(PATH) == [body]
    shown = capsys.readouterr()
    assert shown.out == "gpuj_3f9a01bc_x\n"
    assert said in shown.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--ttl", "24"], "24h"),
        (["--uses", "0"], "at least 1"),
        (["--uses", "few"], "number of nodes"),
        (["--labels", "zone"], "zone=a"),
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
        assert main(["registry", "token", "create", *words, "--api", registry.api]) == 4
        assert registry.asked == []
    assert hint in capsys.readouterr().err


def test_a_token_in_a_file_names_the_file_in_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "join.token"
    with standing_in({PATH: MADE}) as registry:
        assert main(["registry", "token", "create", "--out", str(path), "--api", registry.api]) == 0
    told = capsys.readouterr().err
    assert f"--join-token-file {path}" in told
    assert "A service reads it from /etc/gpu-agent/join-token" in told
