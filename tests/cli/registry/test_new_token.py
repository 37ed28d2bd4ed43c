import argparse
import json
import time
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.new_token import add_out, asked_ttl, tell, ttl, until

MADE = {"token_id": "3f9a01bc", "token": "gpuj_3f9a01bc_x", "expires_at": None}


def told(*words: str) -> None:
    parser = argparse.ArgumentParser()
    add_out(parser)
    parser.add_argument("--json", action="store_true")
    tell(parser.parse_args(words), lambda: MADE, lambda made: f"About {made['token_id']}.")


def test_stdout_holds_the_token_alone(capsys: pytest.CaptureFixture[str]) -> None:
    told()
    said = capsys.readouterr()
    assert said.out == "gpuj_3f9a01bc_x\n"
    assert said.err.startswith("About 3f9a01bc.\nIt is shown this once")
    assert "registry token revoke 3f9a01bc" in said.err
    assert "gpuj_" not in said.err


def test_in_a_file_it_is_shown_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t"
    told("--out", str(path))
    told("--out", str(path), "--json", "--force")
    said = capsys.readouterr()
    assert path.read_text() == "gpuj_3f9a01bc_x\n"
    assert "gpuj_" not in said.out + said.err
    assert json.loads(said.out) == {**MADE, "token": None, "file": str(path)}


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("the only copy of another")
    with pytest.raises(Failure, match="--force") as failed:
        told("--out", str(path))
    assert failed.value.code is ExitCode.CONFIGURATION
    assert path.read_text() == "the only copy of another"
    told("--out", str(path), "--force")
    assert path.read_text() == "gpuj_3f9a01bc_x\n"


def test_json_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    told("--json")
    said = capsys.readouterr()
    assert json.loads(said.out) == MADE
    assert said.err == ""


def test_how_long_it_may_be_used_is_a_length_or_never() -> None:
    assert asked_ttl(None) == {}
    assert asked_ttl(ttl("24h")) == {"ttl_seconds": 86400.0}
    assert asked_ttl(ttl("never")) == {"ttl_seconds": None}
    with pytest.raises(argparse.ArgumentTypeError, match="90s"):
        ttl("soon")


def test_its_end_is_said() -> None:
    assert until(MADE) == "until it is revoked"
    assert until({"expires_at": time.time() + 86400}) == "for 24 h"
