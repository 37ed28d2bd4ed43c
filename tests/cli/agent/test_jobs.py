import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.cli.agent.jobs import job_count
from gpu_agent.cli.agent.status_page import holder_in_words, job_table
from gpu_agent.cli.main import main
from gpu_agent.cli.output.text import plain_text
from gpu_agent.local.connection import Connection
from gpu_agent.wire.control import JobInfo
from tests.node.control_harness import serving
from tests.programs import COMMAND, Program, eventually
from tests.waiting import patience


def test_a_command_is_a_job_while_it_runs_and_its_code_is_ours(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        ask = (*COMMAND, "job", "list", "--socket", str(served.path))
        inside = (
            f"import subprocess, sys; sys.exit(b'job-1' in subprocess.run({ask}, stdout=-1).stdout and 7)"
        )
        assert (
            main(["job", "run", "--socket", str(served.path), "job-1", "--", sys.executable, "-c", inside])
            == 7
        )
        eventually(lambda: served.agent.jobs.ids == (), within_seconds=10, what="the job is over")


def test_words_behind_the_command_are_the_commands_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    echo = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "--json", "-x"]
    with serving(tmp_path / "s") as served:
        assert main(["job", "run", "--socket", str(served.path), "job-1", *echo]) == 0
    assert capfd.readouterr().out == "['--', '--json', '-x']\n"


def test_where_no_agent_answers_the_command_runs_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job", "run", "--socket", str(tmp_path / "s"), "job-1", "--", "false"]) == 1
    assert "job-1 runs all the same, and is announced as soon as one does" in capsys.readouterr().err


def test_an_agent_may_be_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made := tmp_path / "made").touch()
    words = ["--required", "--socket", str(tmp_path / "s"), "job-1", "--", "rm", str(made)]
    assert main(["job", "run", *words]) == 5
    assert made.exists()
    assert "no agent answers at" in capsys.readouterr().err


def test_a_job_that_the_agent_does_not_take_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made := tmp_path / "made").touch()
    with serving(tmp_path / "s") as served:
        assert main(["job", "run", "--socket", str(served.path), "", "--", "rm", str(made)]) == 6
    assert made.exists()
    assert "a job's id has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["/nowhere/at-all"], 127, "there is no command /nowhere/at-all"),
        (["/etc/passwd"], 126, "/etc/passwd cannot be run"),
        ([], 4, "write ID -- COMMAND"),
        (["--socket", "x"], 4, "--socket stands behind the job's id"),
    ],
)
def test_what_cannot_be_run_is_shown(
    tmp_path: Path, command: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "run", "--socket", str(served.path), "job-1", *command]) == code
    assert words in capsys.readouterr().err


def test_signals_are_handed_on_and_a_signals_end_is_reported_as_shells_do(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        catches = "trap 'exit 9' USR1; echo >&2 runs; while :; do sleep 0.05; done"
        words = ("job", "run", "--socket", str(served.path), "job-1", "--")
        with Program(*words, "sh", "-c", catches) as polite:
            eventually(lambda: "runs\n" in polite.other, within_seconds=20, what="it runs")
            polite.send(signal.SIGUSR1)
            assert polite.wait(patience(10)) == 9
        with Program(*words, "sh", "-c", "echo >&2 runs; exec sleep 60") as ended:
            eventually(lambda: "runs\n" in ended.other, within_seconds=20, what="it runs")
            ended.send(signal.SIGTERM)
            assert ended.wait(patience(10)) == 128 + signal.SIGTERM


def test_ctrl_c_reaches_the_command_once(tmp_path: Path) -> None:
    counts = "n=0; trap 'n=$((n+1))' INT; echo runs; read word; read word; echo so $n"
    in_terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) != 0)"
    with serving(tmp_path / "s") as served:
        words = [*COMMAND, "job", "run", "--socket", str(served.path), "job-1", "--", "sh", "-c", counts]
        with subprocess.Popen(
            [sys.executable, "-c", in_terminal, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as person:
            assert person.stdin is not None
            assert person.stdout is not None
            shown = b""
            for awaited, typed in ((b"runs", b"\x03"), (b"^C", b"one\n"), (b"one", b"two\n"), (b"so 1", b"")):
                while awaited not in shown:
                    shown += os.read(person.stdout.fileno(), 4096) or pytest.fail(repr(shown))
                with contextlib.suppress(BrokenPipeError):  # some shells take Ctrl-C for the first word's end
                    person.stdin.write(typed)
            assert person.wait(patience(10)) == 0


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
def test_from_another_container_a_number_names_no_process_and_job_run_needs_none(tmp_path: Path) -> None:
    apart = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    with serving(tmp_path / "s") as served:
        at = ("--socket", str(served.path))
        named = [*apart, *COMMAND, "job", "start", "job-1", *at, "--pid", "1"]
        refused = subprocess.run(named, capture_output=True, text=True, check=False, timeout=patience(60))
        assert (refused.returncode, "use `gpu-agent job run`" in refused.stderr) == (6, True)
        inside = [*COMMAND, "job", "run", *at, "job-1", "--", *COMMAND, "job", "list", *at]
        printed = subprocess.run(
            [*apart, *inside], capture_output=True, text=True, check=True, timeout=patience(60)
        )
        assert "job-1" in printed.stdout
        eventually(lambda: served.agent.jobs.ids == (), within_seconds=10, what="the job is over")


def test_a_job_is_done_and_the_others_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served, Connection(served.path) as worker:
        for job in ("job-1", "job-2", "job-3"):
            worker.ask("job_start", job_id=job)
        assert main(["job", "finish", "job-1", "--socket", str(served.path)]) == 0
        assert capsys.readouterr().out == "job-1 is done; 2 jobs are in flight.\n"
        assert main(["job", "finish", "job-2", "--json", "--socket", str(served.path)]) == 0
        assert [one["job_id"] for one in json.loads(capsys.readouterr().out)["in_flight"]] == ["job-3"]


def test_an_unknown_job_is_refused_with_the_command_that_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "finish", "job-9", "--socket", str(served.path)]) == 6
    assert "gpu-agent job list" in capsys.readouterr().err


def test_jobs_are_listed_with_what_ends_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served, Connection(served.path) as worker:
        worker.ask("job_start", job_id="job-1")
        assert main(["job", "list", "--socket", str(served.path)]) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row.startswith("job-1  ")
        assert "the connection of process" in row
        assert main(["job", "list", "--json", "--socket", str(served.path)]) == 0
        assert json.loads(capsys.readouterr().out)["in_flight"][0]["held_by"] == "connection"


def test_none_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "list", "--socket", str(served.path)]) == 0
    assert capsys.readouterr().out == "No job is in flight.\n"


NOW = 1_700_000_000.0


def job(**more: object) -> JobInfo:
    given = {"job_id": "job-1", "uid": os.getuid(), "since": NOW - 120, "pid": 4711, "held_by": "process"}
    return JobInfo.model_validate({**given, **more})


def test_a_job_is_shown_with_its_user_and_with_what_ends_it() -> None:
    head, row = (plain_text(one).split() for one in job_table([job()], None, now=NOW))
    assert head == ["JOB", "SINCE", "FOR", "USER", "ENDS", "WITH"]
    assert row[0] == "job-1"
    assert row[2:] == ["2", "min", pwd.getpwuid(os.getuid()).pw_name, "process", "4711"]


def test_an_unknown_user_stays_a_number() -> None:
    assert " 2345678  " in plain_text(job_table([job(uid=2345678)], None, now=NOW)[1])


@pytest.mark.parametrize(
    ("pid", "held_by", "words"),
    [
        (7, "process", "process 7"),
        (7, "connection", "the connection of process 7"),
        (None, "connection", "a connection from elsewhere"),
    ],
)
def test_what_holds_a_job_is_shown(pid: int | None, held_by: str, words: str) -> None:
    assert holder_in_words(job(pid=pid, held_by=held_by)) == words


def test_no_jobs_are_no_lines() -> None:
    assert job_table([], 80, now=NOW) == []


def test_jobs_are_counted_in_words() -> None:
    assert [job_count([0] * count) for count in (0, 1, 2)] == [
        "no jobs are in flight",
        "1 job is in flight",
        "2 jobs are in flight",
    ]
