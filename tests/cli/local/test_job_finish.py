import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.local.conversation import Conversation
from tests.node.an_agent import serving


def test_a_job_is_done_and_the_others_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served, Conversation(served.path) as worker:
        for job in ("job-1", "job-2", "job-3"):
            worker.ask("job_start", job_id=job)
        assert main(["job", "finish", "job-1", "--socket", str(served.path)]) == 0
        assert capsys.readouterr().out == "job-1 is done; 2 jobs are in flight.\n"
        assert main(["job", "finish", "job-2", "--json", "--socket", str(served.path)]) == 0
        assert [one["job_id"] for one in json.loads(capsys.readouterr().out)["in_flight"]] == ["job-3"]


def test_a_job_that_nobody_runs_is_refused_with_the_command_that_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "finish", "job-9", "--socket", str(served.path)]) == 6
    assert "gpu-agent job list" in capsys.readouterr().err
