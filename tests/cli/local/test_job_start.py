import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from tests.node.an_agent import serving
from tests.programs import COMMAND, eventually


def test_a_job_is_in_flight_for_as_long_as_the_named_process_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served, subprocess.Popen(["sleep", "60"]) as worker:
        words = ["job", "start", "job-1", "--pid", str(worker.pid), "--socket", str(served.path)]
        assert main(words) == 0
        assert f"job-1 is in flight; it ends with process {worker.pid}" in capsys.readouterr().out
        assert served.agent.jobs.ids == ("job-1",)
        assert [one.pid for one in served.agent.jobs.workers] == [worker.pid]
        worker.kill()


def test_without_a_process_the_one_that_called_holds_the_job(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        script = f'{COMMAND[0]} job start job-1 --json --socket "$1"; echo $$ >&2'
        done = subprocess.run(
            ["sh", "-c", script, "sh", str(served.path)], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["in_flight"][0]["pid"] == int(done.stderr)


@pytest.mark.parametrize(("pid", "code"), [("0", 4), ("x", 4), (str(2**31 - 1), 6)])
def test_what_can_be_no_process_is_refused(tmp_path: Path, pid: str, code: int) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "start", "job-1", "--pid", pid, "--socket", str(served.path)]) == code
        assert served.agent.jobs.ids is None


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root makes containers")
def test_from_another_container_a_number_names_nobody_and_job_run_needs_none(tmp_path: Path) -> None:
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    with serving(tmp_path / "s") as served:
        at = ("--socket", str(served.path))
        named = [*apart, *COMMAND, "job", "start", "job-1", *at, "--pid", "1"]
        refused = subprocess.run(named, capture_output=True, text=True, check=False, timeout=60)
        assert (refused.returncode, "use `gpu-agent job run`" in refused.stderr) == (6, True)
        inside = [*COMMAND, "job", "run", *at, "job-1", "--", *COMMAND, "job", "list", *at]
        told = subprocess.run([*apart, *inside], capture_output=True, text=True, check=True, timeout=60)
        assert "job-1" in told.stdout
        eventually(lambda: served.agent.jobs.ids == (), within_seconds=10, what="the job is over")
