import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from tests.node.an_agent import serving
from tests.programs import COMMAND, Program, eventually


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
def test_what_cannot_be_run_is_said(
    tmp_path: Path, command: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as served:
        assert main(["job", "run", "--socket", str(served.path), "job-1", *command]) == code
    assert words in capsys.readouterr().err


def test_signals_are_handed_on_and_a_signals_end_is_told_as_shells_do(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served:
        catches = "trap 'exit 9' USR1; echo >&2 runs; while :; do sleep 0.05; done"
        words = ("job", "run", "--socket", str(served.path), "job-1", "--")
        with Program(*words, "sh", "-c", catches) as polite:
            eventually(lambda: "runs\n" in polite.other, within_seconds=20, what="it runs")
            polite.send(signal.SIGUSR1)
            assert polite.wait(10) == 9
        with Program(*words, "sh", "-c", "echo >&2 runs; exec sleep 60") as ended:
            eventually(lambda: "runs\n" in ended.other, within_seconds=20, what="it runs")
            ended.send(signal.SIGTERM)
            assert ended.wait(10) == 128 + signal.SIGTERM


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
            assert person.wait(10) == 0
