import io
import os
import subprocess
import sys
import time

import pytest

from gpu_agent.cli.output import streams


def test_complaining_without_anybody_to_hear_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    streams.print_stderr("this is lost")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    streams.print_stderr("nor this")


def test_a_complaint_is_one_line_that_says_who_complains(capsys: pytest.CaptureFixture[str]) -> None:
    streams.print_stderr("there is no such thing")
    assert capsys.readouterr().err == "gpu-agent: there is no such thing\n"


def test_a_message_that_quotes_others_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    streams.print_stderr("it said \x1b[2J\x9b31m\r\u202e:\n  and more")
    assert capsys.readouterr().err == "gpu-agent: it said \\x1b[2J\\x9b31m\\r\\u202e:\n  and more\n"


def test_a_complaint_repeats_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    streams.print_stderr("auth: Input should be 'on' or 'off', got 'gpuo_0123abcd_s3cret'")
    assert capsys.readouterr().err.endswith("got 'gpuo_0123abcd_[redacted]'\n")


def test_a_stream_whose_reader_left_takes_everything_and_keeps_the_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    descriptor = streams._Descriptor(writing, "wb")
    assert descriptor.write(b"one") == 3
    assert isinstance(descriptor.fault, BrokenPipeError)
    assert descriptor.write(b"two") == 3
    descriptor.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_an_unbuffered_stream_writes_all_though_its_pipe_is_full_and_signals_come(*, blocking: bool) -> None:
    """With `PYTHONUNBUFFERED`, as containers set it, what a signal left of a write was lost."""
    program = (
        "import os, signal, sys\n"
        "from gpu_agent.cli.output.streams import prepare_streams\n"
        f"os.set_blocking(2, {blocking})\n"
        "prepare_streams()\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "for number in range(40):\n"
        "    sys.stderr.write(''.join(f'{number} {line}\\n' for line in range(2000)))\n"
        "    sys.stderr.flush()\n"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stderr is not None
        read = b""
        while some := os.read(running.stderr.fileno(), 4000):
            read += some
            time.sleep(0.002)  # a reader that is slower than the program, which finds the pipe full
    assert read.decode().split("\n")[:-1] == [
        f"{number} {line}" for number in range(40) for line in range(2000)
    ]


def test_an_arrow_is_an_arrow_in_every_locale() -> None:
    words = "'ready \u2192 offline\u2026 \xfc'"
    code = f"from gpu_agent.cli.output import streams; streams.prepare_streams(); print({words})"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert printed.stdout == b"ready -> offline... ?\n"


def test_what_is_no_plain_stream_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    streams.prepare_streams()
    assert sys.stdout is before
    assert streams.stdout_fault() is None
    assert capsys.readouterr().out == ""


def test_a_reader_that_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    raw = streams._Descriptor(writing, "wb")
    with io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        stdout.write("one")
        assert not streams.reader_left()
        os.close(reading)
        assert streams.reader_left(), "though nothing was written since"
        stdout.write("two")
        assert streams.reader_left()
        monkeypatch.undo()
