"""The owner's hook: what makes it pass or fail, and what it must never do to the agent."""

import os
import threading
import time
from pathlib import Path

import pytest

from gpu_agent.probe.checks import process
from gpu_agent.probe.checks.judgement import Expected, Result
from gpu_agent.probe.checks.machine import run_hook
from gpu_agent.probe.checks.process import OUTPUT_BYTES, CheckProcesses
from tests.waiting import patience


def script(folder: Path, *lines: str) -> Path:
    path = folder / "hook"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def hook(*command: str, seconds: float | None = None, environ: dict[str, str] | None = None) -> Result:
    processes = CheckProcesses(dict(os.environ) if environ is None else environ)
    expected = Expected(hook=command, hook_seconds=seconds or patience(20))
    return run_hook(processes, expected, threading.Event())


def test_it_passes_by_exit_status_0_and_its_last_line_is_shown(tmp_path: Path) -> None:
    result = hook(str(script(tmp_path, "echo first", "echo all 8 GPUs passed", "echo")))
    assert (result.ok, result.scope, result.detail) == (True, "node", "all 8 GPUs passed")


def test_any_other_exit_status_fails_with_what_it_printed_last_on_either_stream(tmp_path: Path) -> None:
    result = hook(str(script(tmp_path, "echo fine", "echo GPU 3 is slow >&2", "exit 3")))
    assert (result.ok, result.detail) == (False, "exit status 3: GPU 3 is slow")


def test_a_signal_that_ends_it_fails_it(tmp_path: Path) -> None:
    result = hook(str(script(tmp_path, "kill -SEGV $$")))
    assert result.ok is False
    assert result.detail.startswith("signal 11: ")


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    result = hook("echo", "$HOME; touch", str(tmp_path / "made"))
    assert result.detail == f"$HOME; touch {tmp_path / 'made'}"
    assert not (tmp_path / "made").exists()


def test_it_gets_no_credential_and_nothing_of_the_agents_own(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "GPU_AGENT_JOIN_TOKEN": "s3cret-1",
        "AWS_SECRET_ACCESS_KEY": "s3cret-2",
        "HTTPS_PROXY": "http://u:s3cret-3@proxy",
        "HARMLESS": "kept-by-the-hook",
    }
    result = hook(str(script(tmp_path, "env | tr '\\n' ' '")), environ=environ)
    assert "s3cret" not in result.detail
    shown = hook(str(script(tmp_path, "echo $HARMLESS $GPU_AGENT_JOIN_TOKEN")), environ=environ)
    assert shown.detail == "kept-by-the-hook"


def test_a_command_that_does_not_exist_has_failed(tmp_path: Path) -> None:
    result = hook(str(tmp_path / "no-such-hook"))
    assert result.ok is False
    assert "could not be started (No such file or directory)" in result.detail


def test_output_without_end_is_bounded_and_its_end_counts(tmp_path: Path) -> None:
    lines = ("yes 0123456789 | head -c 3000000", "echo", "echo the end")
    assert hook(str(script(tmp_path, *lines))).detail == "the end"
    endless = hook(str(script(tmp_path, "yes x | tr -d '\\n'")), seconds=0.5)
    assert endless.ok is False
    assert len(endless.detail) < OUTPUT_BYTES


def test_words_that_steer_a_terminal_are_made_harmless(tmp_path: Path) -> None:
    assert hook(str(script(tmp_path, "printf 'a\\033[2Jb\\n'"))).detail == "a?[2Jb"


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    result = hook(str(script(tmp_path, f"sleep 600 & echo $! > {pid_file}", "wait")), seconds=0.5)
    assert time.monotonic() - began < patience(8)
    assert result.ok is False
    assert "no end within 0.5 s" in result.detail
    child = int(pid_file.read_text())
    deadline = time.monotonic() + patience(5)
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_no_other_one_starts_while_anything_that_a_late_one_started_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.3)
    pid_file = tmp_path / "pid"
    stuck = f"sh -c \"trap '' TERM; echo \\$\\$ > {pid_file}; while :; do sleep 0.1; done\""
    late = Expected(hook=(str(script(tmp_path, f"{stuck} &", "wait")),), hook_seconds=patience(0.5))
    processes, stop = CheckProcesses(dict(os.environ)), threading.Event()
    result = run_hook(processes, late, stop)
    pid = int(pid_file.read_text())
    try:
        assert result.detail.endswith(f"and process {pid} does not end by SIGTERM")
        refused = run_hook(processes, Expected(hook=("true",)), stop)
        assert refused.ok is None
        assert refused.detail == f"true: an earlier check, process {pid}, was asked to end and has not"
    finally:
        os.kill(pid, 9)
    deadline = time.monotonic() + patience(5)
    while processes.left_behind_pid is not None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    assert run_hook(processes, Expected(hook=("true",)), stop).ok


def test_what_it_leaves_running_does_not_hold_up_its_result(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    result = hook(str(script(tmp_path, f"sleep 30 & echo $! > {pid_file}", "echo done")))
    os.kill(int(pid_file.read_text()), 15)
    assert (result.ok, result.detail) == (True, "done")
    assert time.monotonic() - began < patience(10)


def test_a_stop_ends_it_at_once(tmp_path: Path) -> None:
    processes, stop = CheckProcesses(dict(os.environ)), threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    path = script(tmp_path, "sleep 600", "sleep 600")
    expected = Expected(hook=(str(path),), hook_seconds=600.0)
    result = run_hook(processes, expected, stop)
    assert time.monotonic() - began < patience(3)
    assert result.ok is None
    assert "the agent stops" in result.detail
    while processes.left_behind_pid is not None:
        assert time.monotonic() - began < patience(5)
        threading.Event().wait(0.02)


@pytest.mark.parametrize("command", [("true",), ("false",)])
def test_a_silent_hook_has_words_only_where_it_failed(command: tuple[str, ...]) -> None:
    result = hook(*command)
    assert result.detail == ("" if result.ok else "exit status 1: false printed nothing")


def test_a_last_line_that_is_printed_word_by_word_is_shown_whole(tmp_path: Path) -> None:
    words = "GPU 3 failed its memory test at 0x1000"
    lines = [f"for word in {words}; do printf '%s ' $word; sleep 0.02; done", "exit 1"]
    assert hook(str(script(tmp_path, *lines))).detail == f"exit status 1: {words}"


def test_no_name_and_no_url_gives_a_credential_away(tmp_path: Path) -> None:
    names = ("DB_PASS", "MYSQL_PWD", "SSH_PASSPHRASE", "OPENAI_APIKEY", "TLS_PRIVATE_KEY")
    environ = {**os.environ, **dict.fromkeys(names, "s3cret"), "DATABASE_URL": "postgres://u:s3cret@db/x"}
    result = hook(str(script(tmp_path, "env | grep -c s3cret")), environ=environ)
    assert result.detail == "exit status 1: 0"


def test_a_word_that_no_system_takes_is_said_and_raises_nothing() -> None:
    result = hook("/bin/echo", "a\0b")
    assert (result.ok, "could not be started (embedded null byte)" in result.detail) == (False, True)
