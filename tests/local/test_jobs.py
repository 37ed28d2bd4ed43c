import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpu_agent import local
from gpu_agent.local.connection import PATIENCE_SECONDS, Connection
from gpu_agent.local.jobs import Announcement
from gpu_agent.node.control.server import ControlLimits
from tests.node.control_harness import FakeAgent, Served, serving
from tests.programs import eventually
from tests.waiting import patience


def in_flight(served: Served) -> list[str]:
    return [job["job_id"] for job in local.ask("job_list", path=served.path)["in_flight"]]


def until(served: Served, jobs: list[str]) -> None:
    eventually(lambda: in_flight(served) == jobs, within_seconds=10, what=f"{jobs} in flight")


def test_a_job_is_in_flight_as_long_as_its_block_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        with local.job("job-1", path=served.path) as announcement:
            assert announcement.announced
            assert in_flight(served) == ["job-1"]
        until(served, [])
        assert served.agent.jobs.ids == ()


def test_a_job_that_fails_is_over_too(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        with pytest.raises(ZeroDivisionError), local.job("job-1", path=served.path):
            raise ZeroDivisionError
        until(served, [])


def test_a_worker_may_run_several_jobs(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, local.job("a", path=served.path):
        with local.job("b", path=served.path):
            assert in_flight(served) == ["a", "b"]
        until(served, ["a"])


def test_a_refusal_is_the_callers_to_know(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "s") as served,
        pytest.raises(local.RefusedError) as refused,
        local.job("", path=served.path),
    ):
        pytest.fail("it began")
    assert refused.value.code == "not_counted"


def test_without_an_agent_the_job_runs_unless_one_is_required(tmp_path: Path) -> None:
    with local.job("job-1", path=tmp_path / "s") as announcement:
        assert not announcement.announced
    with pytest.raises(local.NoAgentError), local.job("job-1", path=tmp_path / "s", required=True):
        pytest.fail("it began")


def test_a_job_is_announced_when_an_agent_comes_and_again_after_each_restart(tmp_path: Path) -> None:
    with local.job("job-1", path=tmp_path / "s"):
        for _ in range(2):
            with serving(tmp_path / "s", agent=FakeAgent()) as served:
                until(served, ["job-1"])


def test_a_worker_that_is_killed_takes_its_job_with_it(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfrom gpu_agent import local\n"
        "with local.job('job-1', path=pathlib.Path(sys.argv[1])):\n"
        "    print('runs', flush=True)\n    time.sleep(60)"
    )
    with serving(tmp_path / "s") as served:
        worker = subprocess.Popen(
            [sys.executable, "-c", program, str(served.path)], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        with worker.stdout as said:
            assert said.readline() == "runs\n"
            assert in_flight(served) == ["job-1"]
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait(patience(5))
        until(served, [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_that_was_forked_neither_ends_the_job_nor_holds_it_beyond_its_parent(tmp_path: Path) -> None:
    works = (
        "import os, sys, time\nfrom pathlib import Path\nfrom gpu_agent import local\n"
        "with local.job('job-1', path=Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n        raise SystemExit\n"
        "    os.wait()\n"
        "    print(len(local.ask('job_list', path=Path(sys.argv[1]))['in_flight']), flush=True)\n"
        "    if os.fork() == 0:\n        time.sleep(60)\n"
        "    input()\n    os._exit(0)\n"
    )
    with serving(tmp_path / "s") as served:
        command = [sys.executable, "-W", "ignore", "-c", works, str(served.path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                assert worker.stdout.readline() == "1\n"
                worker.stdin.write("\n")
                worker.stdin.flush()
                assert worker.wait(patience(20)) == 0
                eventually(lambda: served.agent.jobs.ids == (), within_seconds=10, what="the job is over")
            finally:
                os.killpg(worker.pid, signal.SIGKILL)


def test_a_busy_agent_delays_no_job_and_receives_it_later(tmp_path: Path) -> None:
    with serving(tmp_path / "s", limits=ControlLimits(connections=1, reserved_for_operators=0)) as served:
        with Connection(served.path) as other:
            other.ask("status")
            with pytest.raises(local.RefusedError), local.job("job-0", path=served.path, required=True):
                pass
            running = local.job("job-1", path=served.path)
            assert not running.__enter__().announced
        eventually(lambda: served.agent.jobs.ids == ("job-1",), within_seconds=20, what="the announcement")
        running.__exit__(None, None, None)


def test_a_job_that_is_done_waits_for_no_answer_of_an_agent_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        announcement = Announcement("job-1", tmp_path / "s")
        thread = threading.Thread(target=announcement.maintain)
        thread.start()
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1024)
            announcement.end()
            thread.join(PATIENCE_SECONDS * 0.8)
            assert not thread.is_alive()
