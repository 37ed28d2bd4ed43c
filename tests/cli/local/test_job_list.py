import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.local.conversation import Conversation
from tests.node.an_agent import serving


def test_jobs_are_listed_with_what_ends_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served, Conversation(served.path) as worker:
        worker.ask("job_start", job_id="job-1")
        assert main(["job", "list", "--socket", str(served.path)]) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row.startswith("job-1  ")
        assert "the connection of process" in row
        assert main(["job", "list", "--json", "--socket", str(served.path)]) == 0
        assert json.loads(capsys.readouterr().out)["in_flight"][0]["held_by"] == "connection"


def test_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "list", "--socket", str(served.path)]) == 0
    assert capsys.readouterr().out == "No job is in flight.\n"
