"""Log lines: an event's identifier with fields, as JSON, or as text for a person at a terminal.

Writes to stderr only. No credential leaves through here: a field named like one is redacted, at any depth,
and so is a token of ours wherever it stands in a line; `token_id` stays. Identifiers are for programs (§8).
"""

import io
import json
import logging
import math
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Protocol, TextIO, cast

MOST_HELD_LETTERS = 8_000_000
"""Of lines that nobody has taken yet: those of some 30 000 changes of a status."""

MOST_IN_A_TURN_LETTERS = 65_536
"""More of one turn of the loop are handed on before its end."""

PIPE_BUF = 4096
"""So many bytes fit where there is room at all (Linux's pipe(7))."""

LAST_LINES_SECONDS = 1.0
"""How long a program that ends waits for the reader of its last lines."""

_ROOT = "gpu_agent"
_NEWLINE = ord("\n")
_JSON = json.JSONEncoder(ensure_ascii=False)
_MAX_DEPTH = 6
_PLAIN_TYPES = frozenset({type(None), bool, int, str})
_NO_CREDENTIALS = frozenset({"token_id", "token_ids"})
_LEVELS = {
    level: logging.getLevelName(level).lower() for level in (logging.DEBUG, logging.INFO, logging.WARNING)
}


class Logger:
    """Emits the events of one part of the program, such as `node` or `server.tls`.

    A cause's `trace_id` is a field like any other.
    """

    def __init__(self, part: str) -> None:
        self._part = part
        self._logger = logging.getLogger(f"{_ROOT}.{part}")
        self.debugging: Callable[[], bool] = partial(self._logger.isEnabledFor, logging.DEBUG)
        """Whether `debug` lines are written: lets a hot path skip making their fields."""

    def debug(self, event: str, /, **fields: object) -> None:
        """Emit what only somebody who searches a fault wants."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Emit what happened."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Emit what an operator should look at."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Emit what an operator must act on."""
        self._logger.error(event, extra={"fields": fields})

    def crash(self, event: str, error: BaseException, /, **fields: object) -> None:
        """Emit a broken promise of ours, with the traceback of its exception."""
        self._logger.error(event, extra={"fields": fields}, exc_info=error)

    def _emit(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        """Emit a line; the JSON lines of a loop without a record, which takes two thirds of their time."""
        if not self._logger.isEnabledFor(level):
            return
        handler = logging.root.handlers[0] if len(logging.root.handlers) == 1 else None
        if not isinstance(handler, _LinesOfATurn) or handler.for_people:
            self._logger.log(level, event, extra={"fields": fields})
        else:
            handler.add(_json_line(time.time(), level, part=self._part, event=event, fields=fields))


def configure(
    level: str = "info",
    *,
    stream: TextIO | None = None,
    human: bool | None = None,
) -> None:
    """Send this program's lines to `stream` (stderr); text for people when it is a terminal.

    Libraries' own lines come through from `warning` on.
    """
    target = sys.stderr if stream is None else stream
    for_people = target.isatty() if human is None else human
    handler = _LinesOfATurn(target, for_people=for_people)
    handler.setFormatter(_HumanLines() if for_people else _JsonLines())
    # What no line of ours shows is not looked up (Python's Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - documented for this
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
        if isinstance(old, _LinesOfATurn):
            old.flush()
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Write this program's own lines from this level on."""
    logging.getLogger(_ROOT).setLevel(level.upper())


class _LinesOfATurn(logging.StreamHandler[TextIO]):
    """Writes together what one turn of the event loop logs: each write costs more than making its line.

    An error, and what no event loop logs, is handed on at once, behind all lines before it.

    What reads a log may stand still: a pager, a container's runtime, journald. The program goes on: a thread
    writes what there is no room for. When it is too far behind, lines are lost, and counted.
    """

    def __init__(self, stream: TextIO, *, for_people: bool) -> None:
        super().__init__(stream)
        self.for_people = for_people
        self._guard = threading.RLock()
        """Not the handler's own lock, which `logging` holds while the program's end waits for the thread."""
        self._waiting: list[str] = []
        self._waiting_letters = self._held_letters = 0
        """Those of this turn; all that are not written."""
        self._is_full = False
        """True from when too much was held until half of it is written."""
        self._lost = 0
        """Lines that no line has named yet."""
        self._planned_on: _EventLoop | None = None
        """The loop that will hand on what waits."""
        self._writer = _Writer.of(stream, self._written)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a library's broken line: `logging` reports it, and raises for none
            self.handleError(record)
        else:
            self.add(line, urgent=record.levelno >= logging.ERROR)

    def add(self, line: str, *, urgent: bool = False) -> None:
        """Write a line at the end of this turn of the loop, or at once."""
        loop = _running_loop()
        with self._guard:
            self._is_full = self._is_full or self._held_letters >= MOST_HELD_LETTERS
            if self._is_full:
                self._lost += 1
                return
            self._hold(line)
            if urgent or loop is None or self._waiting_letters >= MOST_IN_A_TURN_LETTERS:
                self._hand_on()
            elif self._planned_on is not loop:  # one that has ended keeps no promise
                self._planned_on = loop
                loop.call_soon(self._hand_on_as_planned)

    def flush(self) -> None:
        """Write what waits, or give the thread a moment for it; `logging` calls it when the program ends."""
        with self._guard:
            self._hand_on()
        if self._writer is not None:
            self._writer.wait(LAST_LINES_SECONDS)

    def close(self) -> None:
        """End the thread once it has written all."""
        if self._writer is not None:
            self._writer.end()
            self._writer = None
        super().close()

    def note(self, event: str, **fields: object) -> str:
        """Return a line of our own, which no level leaves out."""
        name, level = f"{_ROOT}.logs", logging.WARNING
        values = {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
        return self.format(logging.makeLogRecord({**values, "msg": event, "fields": fields}))

    def _hold(self, line: str) -> None:
        self._waiting.append(f"{line}\n")
        self._waiting_letters += len(line) + 1
        self._held_letters += len(line) + 1

    def _hand_on_as_planned(self) -> None:
        self._planned_on = None
        with self._guard:
            self._hand_on()

    def _hand_on(self) -> None:
        if not self._waiting:
            return
        lines, is_next = "".join(self._waiting), self._held_letters == self._waiting_letters
        self._waiting.clear()
        self._waiting_letters = 0
        if self._writer is not None:
            lines = self._writer.write(lines, is_next=is_next)
        if not lines:
            return
        with suppress(OSError, ValueError):  # a full disk, a closed stream: there is nowhere to say so
            self.stream.write(lines)
            self.stream.flush()
        self._held_letters -= len(lines)

    def _written(self, letters: int, failed: int) -> None:
        """Take in that so many letters are written, but for so many lines, which could not be."""
        with self._guard:
            self._held_letters -= letters
            self._lost += failed
            if self._held_letters < MOST_HELD_LETTERS // 2:
                self._is_full = False
            if self._lost and not failed and not self._is_full:
                lost, self._lost = self._lost, 0
                self._hold(self.note("log_lines_lost", count=lost))
                self._hand_on()


class _Writer:
    """Writes to a descriptor: at once where there is room, else by a thread, however long that takes.

    At once, so that a program that is killed has logged what it did. Not by the stream: Python, when it ends,
    waits for a lock that a write by the stream holds.
    """

    def __init__(self, stream: TextIO, written: Callable[[int, int], None]) -> None:
        self._descriptor, self._encoding = stream.fileno(), stream.encoding
        self._written = written
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._room = select.poll()
        if not os.isatty(self._descriptor):  # one may have room for a part of a line
            self._room.register(self._descriptor, select.POLLOUT)
        self._tasks: SimpleQueue[str | threading.Event | None] = SimpleQueue()
        self._in_line = False
        """True where a line was cut off: what comes next begins another one."""
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, stream: TextIO, written: Callable[[int, int], None]) -> "_Writer | None":
        """Begin to write to a stream's descriptor.

        None where it has none, and on Windows, whose consoles take no bytes.
        """
        if os.name == "nt" or not isinstance(stream, io.TextIOWrapper):
            return None
        try:
            return cls(stream, written)
        except (OSError, ValueError):
            return None

    def write(self, lines: str, *, is_next: bool) -> str:
        """Write lines, at once if nothing is before them, or have it done; returns what no thread can do."""
        written = failed = 0
        while is_next and lines and (letters := self._room_for(lines)):
            try:
                failed += self._write(lines[:letters], may_wait=False)
            except BlockingIOError:  # another process has filled it just now
                break
            lines = lines[letters:]
            written += letters
        lines = self._put(lines)
        if written:  # said last: that may write a line more, which comes behind these
            self._written(written, failed)
        return lines

    def wait(self, seconds: float) -> None:
        """Wait until the thread has written all, or for so long."""
        if self._thread is not None:
            done = threading.Event()
            self._tasks.put(done)
            done.wait(seconds)

    def end(self) -> None:
        """End the thread once it has written all."""
        self._tasks.put(None)

    def _put(self, lines: str) -> str:
        """Have the thread write lines; returns those that it cannot, as none can be started."""
        if lines and self._thread is None:
            thread = threading.Thread(target=self._run, name="logs", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return lines
            self._thread = thread
        if lines:
            self._tasks.put(lines)
        return ""

    def _room_for(self, lines: str) -> int:
        """Return how many letters, whole lines, a write takes without waiting.

        A pipe or a socket that takes some bytes takes so many. Only where several processes share it, and
        fill it up in the same instant, the last of them waits.
        """
        if self._is_file:
            return len(lines)
        most = PIPE_BUF if lines.isascii() else PIPE_BUF // 4
        if not self._room.poll(0):
            return 0
        return len(lines) if len(lines) <= most else lines.rfind("\n", 0, most) + 1

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if isinstance(task, threading.Event):
                task.set()
            else:
                self._written(len(task), self._write(task, may_wait=True))

    def _write(self, lines: str, *, may_wait: bool) -> int:
        """Write all; returns how many lines could not be written.

        Raises `BlockingIOError` where that would wait and may not, for a descriptor that does not block; the
        caller writes all again, so that of a line that was cut off nothing is missing.
        """
        data = lines.encode(self._encoding, "backslashreplace")
        left = memoryview(b"\n" + data if self._in_line else data)
        while left:
            try:
                written = os.write(self._descriptor, left)
            except BlockingIOError:  # another process made it non-blocking
                if not may_wait:
                    raise
                select.select((), (self._descriptor,), ())
            except OSError:  # a full disk, no reader
                return min(bytes(left).count(b"\n"), lines.count("\n"))
            else:
                self._in_line = left[written - 1] != _NEWLINE
                left = left[written:]
        return 0


class _EventLoop(Protocol):
    """What is needed of asyncio's."""

    def call_soon(self, callback: Callable[[], None]) -> object: ...


def _running_loop() -> _EventLoop | None:
    """Return the event loop that runs this code, if one does.

    A short command does not load asyncio, which takes a while; neither does this.
    """
    loaded = sys.modules.get("asyncio")
    try:
        return None if loaded is None else cast("_EventLoop", loaded.get_running_loop())
    except (RuntimeError, AttributeError):  # another thread loads it right now
        return None


class _JsonLines(logging.Formatter):
    """One JSON object a line: timestamp, level, part, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        part, fields = record.name.removeprefix(f"{_ROOT}."), getattr(record, "fields", None)
        return _json_line(
            record.created,
            record.levelno,
            part=part,
            event=record.getMessage(),
            fields=fields if isinstance(fields, Mapping) else {},
            traceback=self.formatException(record.exc_info) if record.exc_info else None,
        )


def _json_line(
    created: float,
    level: int,
    *,
    part: str,
    event: str,
    fields: Mapping[str, object],
    traceback: str | None = None,
) -> str:
    line: dict[str, object] = {
        "timestamp": _utc(created),
        "level": _LEVELS.get(level) or logging.getLevelName(level).lower(),
        "part": part,
        "event": event,
    }
    for name, value in fields.items():
        is_plain = type(value) in _PLAIN_TYPES and not _is_credential(name)  # as almost always
        plain = value if is_plain else _plain(value, str(name), _MAX_DEPTH)
        line[name if name not in line else f"{name}_"] = plain
    if traceback is not None:
        line["traceback"] = traceback
    return redact_secrets(_all_visible(_JSON.encode(line)))


class _HumanLines(logging.Formatter):
    """Time, level, event and `name=value` pairs; never a character that steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():<7} {_printable(record.getMessage())}{fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line = "\n".join([line, *map(_all_visible, traceback.split("\n"))])
        return redact_secrets(line)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, Mapping):
        return {}
    return {str(name): _plain(value, str(name), _MAX_DEPTH) for name, value in fields.items()}


def _plain(value: object, name: str, depth: int) -> object:
    """Turn a field's value into plain JSON, with credentials taken out."""
    if _is_credential(name):
        return REDACTED if value is not None else None
    if type(value) in _PLAIN_TYPES or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if depth and isinstance(value, Mapping):
        return {str(key): _plain(inner, str(key), depth - 1) for key, inner in value.items()}
    if depth and isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [_plain(inner, "", depth - 1) for inner in value]
    return str(value)


@lru_cache(maxsize=1024)
def _is_credential(name: str) -> bool:
    lowered = name.lower()
    return lowered not in _NO_CREDENTIALS and ("token" in lowered or lowered == "authorization")


def _all_visible(text: str) -> str:
    """Write as JSON would what no terminal and no reader of lines may take for a command or a line's end."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def _utc(seconds: float) -> str:
    return f"{_utc_second(int(seconds))}.{int(seconds * 1000) % 1000:03d}Z"


@lru_cache(maxsize=4)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _shown(value: object) -> str:
    if isinstance(value, str):
        plain = value and value.isprintable() and not any(mark in value for mark in ' "=')
        return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
    return json.dumps(value, ensure_ascii=True)


def _printable(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


REDACTED = "[redacted]"
_SECRET = re.compile(r"(gpu[jno]_[0-9a-f]{8}_)[A-Za-z0-9_-]+")
_SOUNDS = re.compile(r"(?i)token|secret|passw|credential|api.?key")
_PASSWORD = re.compile(r"(://[^\s/:@\"']*:)[^\s/@\"']+@")
"""What stands between a URL's user and its host."""


def is_secret_name(name: str) -> bool:
    """Say whether something of that name is likely to be one."""
    return _SOUNDS.search(name) is not None


def contains_token(text: str) -> bool:
    """Say whether a token of ours stands in a text."""
    return _SECRET.search(text) is not None


def redact_secrets(line: str) -> str:
    """Keep a token's id and take its secret out, wherever it got in: a path, a fault's text, a traceback."""
    if "gpuj_" in line or "gpun_" in line or "gpuo_" in line:  # takes a tenth of what the search takes
        line = _SECRET.sub(rf"\1{REDACTED}", line)
    return _PASSWORD.sub(rf"\1{REDACTED}@", line) if "://" in line else line
