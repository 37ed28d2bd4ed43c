import asyncio
import io
import json
import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpu_agent.runtime import logs
from gpu_agent.runtime.logs import (
    REDACTED,
    Logger,
    configure,
    contains_token,
    is_secret_name,
    redact_secrets,
    set_level,
)
from tests.waiting import patience


def _line(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_a_line_is_one_json_object_with_time_level_part_event_and_fields() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("node_registered", node_id="node-1", trace_id="t-1")
    line = _line(stream)
    assert list(line) == ["timestamp", "level", "part", "event", "node_id", "trace_id"]
    assert str(line["timestamp"]).endswith("Z")
    assert (line["level"], line["part"], line["event"]) == ("info", "node", "node_registered")


def test_fields_named_like_credentials_are_redacted_at_any_depth() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    secret = "hunter2"
    Logger("node").info(
        "seen",
        node_token=secret,
        Authorization=secret,
        headers={"authorization": secret, "list": [{"join_Token": secret}]},
        absent_token=None,
    )
    assert secret not in stream.getvalue()
    assert _line(stream)["node_token"] == REDACTED
    assert _line(stream)["absent_token"] is None


@pytest.mark.parametrize("human", [True, False])
def test_a_token_in_a_text_keeps_its_id_and_loses_its_secret(*, human: bool) -> None:
    stream = io.StringIO()
    configure(stream=stream, human=human)
    secret = "s3cret-_" * 5 + "abc"
    try:
        int(f"gpuo_0123abcd_{secret}!")
    except ValueError as error:
        Logger("node").crash("task_crashed", error, path=f"/ws/node?token=gpuj_0123abcd_{secret}&a=b")
    assert secret not in stream.getvalue()
    assert f"gpuj_0123abcd_{REDACTED}&a=b" in stream.getvalue()
    assert f"gpuo_0123abcd_{REDACTED}!" in stream.getvalue()


def test_the_id_of_a_token_is_no_credential() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("seen", token_id="0123abcd")
    assert _line(stream)["token_id"] == "0123abcd"


def test_a_field_never_overwrites_the_line_s_own_keys() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("seen", event="other", level="x")
    assert (_line(stream)["event"], _line(stream)["event_"]) == ("seen", "other")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"raw", object(), ValueError("x")])
def test_any_value_makes_a_line_that_json_readers_accept(value: object) -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("seen", value=value)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(stream.getvalue(), parse_constant=refuse)


def test_a_value_that_holds_itself_ends() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    loop: list[object] = []
    loop.append(loop)
    Logger("node").info("seen", value=loop)
    assert "seen" in stream.getvalue()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure("warning", stream=stream)
    log = Logger("node")
    log.debug("a")
    log.info("b")
    assert stream.getvalue() == ""
    assert not log.debugging()
    log.warning("c")
    assert _line(stream)["event"] == "c"


def test_libraries_are_logged_from_warning_on() -> None:
    stream = io.StringIO()
    configure("debug", stream=stream)
    logging.getLogger("websockets.client").info("chatter")
    assert stream.getvalue() == ""
    logging.getLogger("websockets.client").warning("trouble")
    assert _line(stream)["event"] == "trouble"


def test_a_crash_carries_its_traceback() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    try:
        int("bad cable")
    except ValueError as error:
        Logger("node").crash("task_crashed", error, task="heartbeats")
    assert "ValueError: invalid literal" in str(_line(stream)["traceback"])


def test_configuring_twice_does_not_double_the_lines() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    configure(stream=stream)
    Logger("node").info("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_people_at_a_terminal_get_text_without_control_characters() -> None:
    stream = io.StringIO()
    configure(stream=stream, human=True)
    Logger("node").warning("refused", reason="\x1b[31mred", node_id="node-1", message="two words")
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert line.endswith(r'warning refused reason="\u001b[31mred" node_id=node-1 message="two words"')


STEERING = "\x1b[2J\x9b31m\x85\u2028\u202e\U000e0001\r\n{"


def test_what_a_peer_wrote_neither_ends_a_line_nor_steers_who_reads_the_file() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("node_fault_reported", message=f"ü {STEERING}")
    assert stream.getvalue().removesuffix("\n").isprintable()
    assert _line(stream)["message"] == f"ü {STEERING}"


def test_neither_does_a_traceback_at_a_terminal() -> None:
    stream = io.StringIO()
    configure(stream=stream, human=True)
    Logger("node").crash("task_crashed", ValueError(STEERING))
    first, *traceback = stream.getvalue().removesuffix("\n").split("\n")
    assert len(traceback) == 2  # the exception's own line end is one
    assert all(line.isprintable() for line in (first, *traceback))


def test_a_stream_that_is_no_terminal_gets_json() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").error("seen")
    assert stream.getvalue().startswith("{")


@pytest.mark.parametrize("kind", ["gpuj", "gpun", "gpuo"])
def test_a_token_keeps_its_id_and_loses_its_secret(kind: str) -> None:
    said = redact_secrets(f"?token={kind}_0123abcd_AbC-_9&x=1")
    assert said == f"?token={kind}_0123abcd_{REDACTED}&x=1"


def test_words_without_a_token_stay() -> None:
    assert redact_secrets("gpu_agent.node, gpuj_ of nothing") == "gpu_agent.node, gpuj_ of nothing"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("proxy http://me:s3cret@proxy:3128 refused", f"proxy http://me:{REDACTED}@proxy:3128 refused"),
        ("socks5://me:s3cret@[::1]:1080", f"socks5://me:{REDACTED}@[::1]:1080"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
    ],
)
def test_a_password_in_a_url_is_taken_out(said: str, shown: str) -> None:
    assert redact_secrets(said) == shown


@pytest.mark.parametrize(("text", "holds"), [("x gpun_0123abcd_AbC", True), ("gpun_ of nothing", False)])
def test_a_token_is_seen_wherever_it_stands(text: str, *, holds: bool) -> None:
    assert contains_token(text) is holds


@pytest.mark.parametrize(
    ("name", "secret"),
    [("password", True), ("Api-Key", True), ("hf_token", True), ("zone", False), ("keyboard", False)],
)
def test_names_of_secrets_are_known(name: str, *, secret: bool) -> None:
    assert is_secret_name(name) is secret


class CountingStream(io.StringIO):
    """Counts the writes that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str, /) -> int:
        """Count, and write."""
        self.writes += bool(text)
        return super().write(text)


async def test_the_lines_of_one_turn_of_the_loop_are_one_write(stream: CountingStream) -> None:
    for number in range(3):
        Logger("node").info("one", number=number)
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert stream.writes == 1
    assert [json.loads(line)["number"] for line in stream.getvalue().splitlines()] == [0, 1, 2]


async def test_an_error_is_written_at_once_after_the_lines_before_it(stream: CountingStream) -> None:
    Logger("node").info("first")
    Logger("node").error("second")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["first", "second"]


async def test_what_another_thread_logs_is_written_at_once(stream: CountingStream) -> None:
    await asyncio.to_thread(Logger("node").info, "elsewhere")
    assert json.loads(stream.getvalue())["event"] == "elsewhere"


async def test_a_broken_line_of_a_library_does_not_fail_its_caller(
    stream: CountingStream, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = logging.makeLogRecord(
        {"name": "library", "levelno": logging.WARNING, "msg": "%d nodes", "args": ("many",)}
    )
    for handler in logging.getLogger().handlers:  # pytest adds one that raises, to the logger itself
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.handle(broken)
    await asyncio.sleep(0)
    assert stream.getvalue() == ""
    assert "Logging error" in capsys.readouterr().err


def test_a_line_that_no_loop_logs_is_written_at_once() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    Logger("node").info("late")
    assert _line(stream)["event"] == "late"


async def test_lines_that_wait_are_written_when_the_program_ends(stream: CountingStream) -> None:
    Logger("node").info("last")
    for handler in logging.getLogger().handlers:
        handler.flush()  # as `logging.shutdown` does
    assert json.loads(stream.getvalue())["event"] == "last"


@pytest.fixture
async def stream() -> CountingStream:
    """Log to a stream by the running loop."""
    made = CountingStream()
    configure(stream=made)
    return made


async def test_a_line_of_a_loop_is_the_same_where_another_handler_wants_its_record() -> None:
    lines = []
    for handler in (None, logging.NullHandler()):
        stream = io.StringIO()
        configure(stream=stream, human=False)
        if handler is not None:
            logging.getLogger().addHandler(handler)
        Logger("node").warning("seen", node_id="é\n", event="own", node_token="hunter2", figures=(1.5, None))
        await asyncio.sleep(0)
        lines.append({**_line(stream), "timestamp": ""})
    assert lines[0] == lines[1]
    assert (lines[0]["level"], lines[0]["event_"], lines[0]["node_token"]) == ("warning", "own", REDACTED)


class Pipe:
    """A log whose reader reads only when it is told to."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self.stream = os.fdopen(self._writing, "w", encoding="utf-8")
        self._junk, self._tail = 0, b""

    def fill(self) -> None:
        """Fill it: a write would wait from now on."""
        os.set_blocking(self._writing, False)
        with suppress(BlockingIOError):
            while True:
                self._junk += os.write(self._writing, b"x" * 4096)
        os.set_blocking(self._writing, True)

    def lines(self) -> list[dict[str, object]]:
        """Read all that is in it now, but for what filled it."""
        pieces = []
        with suppress(BlockingIOError):
            while piece := os.read(self._reading, 1 << 16):
                pieces.append(piece)
        *whole, self._tail = (self._tail + b"".join(pieces)[self._junk :]).split(b"\n")
        self._junk = 0
        return [json.loads(line) for line in whole]

    async def await_lines(self, last: str) -> list[dict[str, object]]:
        """Read until an event of this name has come."""
        lines: list[dict[str, object]] = []
        async with asyncio.timeout(patience(5)):
            while not any(line["event"] == last for line in lines):
                lines += self.lines()
                await asyncio.sleep(0)
        return lines

    def abandon(self) -> None:
        """Close the reader's end."""
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Log to a pipe."""
    made = Pipe()
    configure(stream=made.stream)
    handler = logging.getLogger().handlers[0]
    yield made
    made.abandon()
    handler.flush()
    handler.close()
    made.stream.close()


async def test_lines_wait_in_their_order_while_their_reader_stands_still(pipe: Pipe) -> None:
    pipe.fill()
    Logger("node").info("first")
    await asyncio.sleep(0)
    Logger("node").error("second")
    await asyncio.to_thread(Logger("node").info, "third")
    Logger("node").info("last")
    await asyncio.sleep(0)
    lines = await pipe.await_lines("last")
    assert [line["event"] for line in lines] == ["first", "second", "third", "last"]


async def test_too_many_lines_for_a_reader_that_stands_still_are_lost_and_counted_where_they_are_missing(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_HELD_LETTERS", 2000)
    set_level("error")  # which leaves out warnings, and not this one
    pipe.fill()
    for number in range(100):
        Logger("node").error("one", number=number)
    lines = await pipe.await_lines("log_lines_lost")
    Logger("node").error("after")
    lines += await pipe.await_lines("after")
    kept = [line["number"] for line in lines if line["event"] == "one"]
    assert kept == list(range(len(kept)))
    assert 2000 / 200 < len(kept) < 2000 / 80
    assert [line["event"] for line in lines[-2:]] == ["log_lines_lost", "after"]
    assert lines[-2]["count"] == 100 - len(kept)


async def test_one_turn_may_log_more_than_is_held_where_its_reader_reads(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_IN_A_TURN_LETTERS", 2000)
    monkeypatch.setattr(logs, "MOST_HELD_LETTERS", 20_000)
    lines: list[dict[str, object]] = []
    began = time.monotonic()
    for number in range(1000):
        Logger("node").info("one", number=number)
        while len(lines) < number - 100 and time.monotonic() - began < patience(5):
            lines += pipe.lines()
    Logger("node").error("last", number=1000)
    lines += await pipe.await_lines("last")
    assert [line["number"] for line in lines] == list(range(1001))


async def test_a_line_longer_than_a_pipe_arrives_whole(pipe: Pipe) -> None:
    text = "a" + "é" * 200_000
    pipe.fill()
    Logger("node").info("long", text=text)
    Logger("node").info("last")
    lines = await pipe.await_lines("last")
    assert [line["event"] for line in lines] == ["long", "last"]
    assert lines[0]["text"] == text


def test_a_program_that_ends_waits_a_moment_for_the_reader_of_its_last_lines(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    Logger("node").info("last")
    handler = logging.getLogger().handlers[0]
    monkeypatch.setattr(logs, "LAST_LINES_SECONDS", 0.01)
    handler.flush()  # nobody reads: it gives up, or this test does not end
    monkeypatch.setattr(logs, "LAST_LINES_SECONDS", patience(5))
    lines = pipe.lines()
    handler.flush()
    assert [line["event"] for line in lines + pipe.lines()] == ["last"]


async def test_lines_that_no_one_reads_any_more_fail_nobody(pipe: Pipe) -> None:
    pipe.fill()
    Logger("node").info("first")
    await asyncio.sleep(0)
    pipe.abandon()
    Logger("node").error("last")


async def test_lines_wait_for_a_reader_while_another_process_made_the_pipe_non_blocking(pipe: Pipe) -> None:
    pipe.fill()
    os.set_blocking(pipe.stream.fileno(), False)
    Logger("node").error("first")
    assert [line["event"] for line in await pipe.await_lines("first")] == ["first"]


def test_a_loop_that_ended_keeps_no_later_one_from_writing(pipe: Pipe) -> None:
    async def log_and_stop(event: str) -> None:
        asyncio.get_running_loop().stop()
        Logger("node").info(event)

    first = asyncio.new_event_loop()
    task = first.create_task(log_and_stop("first"))
    first.run_forever()  # it planned to write, and does not get to it

    async def log(event: str) -> None:
        Logger("node").info(event)
        await asyncio.sleep(0)
        assert [line["event"] for line in await pipe.await_lines(event)] == ["first", "last"]

    asyncio.run(log("last"))
    assert task.done()
    first.close()


async def test_a_terminal_that_stands_still_holds_nobody_up() -> None:
    master, terminal = os.openpty()
    os.set_blocking(master, False)
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        configure(stream=stream)
        for number in range(2000):
            Logger("node").info("one", number=number)
            await asyncio.sleep(0)
        shown = ""
        async with asyncio.timeout(patience(10)):
            while "number=1999" not in shown:
                with suppress(BlockingIOError):
                    shown += os.read(master, 1 << 16).decode()
                await asyncio.sleep(0)
        logging.getLogger().handlers[0].close()
    os.close(master)
    assert [line.rpartition("=")[2] for line in shown.splitlines()] == [str(one) for one in range(2000)]


def test_a_line_that_a_full_disk_cut_off_is_ended_and_counted_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("w", encoding="utf-8") as stream:
        configure(stream=stream)
        handler = logging.getLogger().handlers[0]
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
            for event in ("whole", "cut", "lost"):
                Logger("node").info(event, text="x" * 20)
            handler.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        Logger("node").info("after")
        handler.flush()
        handler.flush()  # what the first one brought about
        handler.close()
    whole, _, *rest = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(whole)["event"] == "whole"
    assert [json.loads(line)["event"] for line in rest] == ["after", "log_lines_lost"]
    assert json.loads(rest[1])["count"] == 2


async def test_lines_lost_without_a_reader_are_counted_behind_the_turn_that_found_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with path.open("w", encoding="utf-8") as stream:
        configure(stream=stream)
        handler = logging.getLogger().handlers[0]
        os.close(reader)
        Logger("node").error("lost")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        for number in range(100):
            Logger("node").info("kept", number=number)
        handler.flush()
        handler.flush()  # what the first one brought about
        lines = [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]
        handler.close()
    os.close(reader)
    assert [line.get("number") for line in lines[:-1]] == list(range(100))
    assert (lines[-1]["event"], lines[-1]["count"]) == ("log_lines_lost", 1)
