"""Log lines: an event's identifier with fields, as JSON, or as text for a person at a terminal.

Writes to stderr only. No credential leaves through here: a field named like one is redacted, at any depth,
and so is a token of ours wherever it stands in a line; `token_id` stays. Identifiers are for programs (§8).
"""

import json
import logging
import math
import os
import re
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache, partial
from typing import Protocol, TextIO, cast

MOST_HELD_LETTERS = 1_000_000
"""Of lines for which their reader has no room: some minutes of a busy registry."""

RETRY_SECONDS = 0.1
LAST_LINES_SECONDS = 1.0
"""How long a program that ends waits for the reader of its last lines."""

PIPE_BUF = 4096
"""Linux writes so many bytes to a pipe at once: no other process's line comes between, and a pipe that takes
some of them takes all (pipe(7))."""

_ROOT = "gpu_agent"
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


_LOG = Logger("logs")


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
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Write this program's own lines from this level on."""
    logging.getLogger(_ROOT).setLevel(level.upper())


class _LinesOfATurn(logging.StreamHandler[TextIO]):
    """Writes together what one turn of the event loop logs: each write costs more than making its line.

    An error, and what no event loop logs, is written immediately, after all lines before it.

    What reads a pipe or a terminal may stand still: a pager, a container's runtime, journald. The program
    goes on: it writes only what there is room for, and holds the other lines. When they are too many, further
    ones are lost, and counted.
    """

    def __init__(self, stream: TextIO, *, for_people: bool) -> None:
        super().__init__(stream)
        self.for_people = for_people
        self._room = _Room.of(stream)
        self._waiting: deque[str] = deque()
        self._waiting_letters = 0
        self._rest = b""
        """What the reader had no room for of a line, or of some."""
        self._lost = 0
        self._loop: _EventLoop | None = None
        """The loop that logged last; it writes what had no room."""
        self._planned_on: _EventLoop | None = None
        """The loop that will flush soon."""

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
        with self.lock or nullcontext():
            if self._waiting_letters >= MOST_HELD_LETTERS:
                self._lost += 1
            else:
                self._hold(line)
            if loop is not None:
                self._loop = loop
            if urgent or loop is None:
                self.flush()
            elif self._planned_on is not loop:  # one that has ended keeps no promise
                self._planned_on = loop
                loop.call_soon(self._flush_as_planned)

    def flush(self) -> None:
        """Write what waits, as far as there is room for it; `logging` calls it when the program ends."""
        with self.lock or nullcontext():
            if self._room is None:
                self._write_all()
                return
            while self._is_holding and self._room.is_there():
                self._write_some(self._room.descriptor)
            if self._is_holding:
                self._flush_later()
            elif self._lost:
                lost, self._lost = self._lost, 0
                _LOG.warning("log_lines_lost", count=lost)

    def close(self) -> None:
        """Wait a moment for the reader to take the last lines: the program ends."""
        last = time.monotonic() + LAST_LINES_SECONDS
        with self.lock or nullcontext():
            if self._room is not None:
                while self._is_holding and (seconds := last - time.monotonic()) > 0:
                    if self._room.is_there(within_seconds=seconds):
                        self._write_some(self._room.descriptor)
                self._room.close()
        super().close()

    @property
    def _is_holding(self) -> bool:
        return bool(self._waiting or self._rest)

    def _hold(self, line: str) -> None:
        self._waiting.append(f"{line}\n")
        self._waiting_letters += len(line) + 1

    def _flush_as_planned(self) -> None:
        self._planned_on = None
        self.flush()

    def _flush_later(self) -> None:
        """Try again soon; in a program without a loop the next line does."""
        if self._loop is not None and self._planned_on is not self._loop:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._loop.call_later, RETRY_SECONDS, self._flush_as_planned)
                self._planned_on = self._loop

    def _write_all(self) -> None:
        lines = "".join(self._waiting)
        self._waiting.clear()
        self._waiting_letters = 0
        with suppress(OSError, ValueError):  # a full disk, a closed stream: there is nowhere to say so
            self.stream.write(lines)
            super().flush()

    def _write_some(self, descriptor: int) -> None:
        """Write whole lines, at most as much as a pipe with room takes at once; of a longer line a part."""
        data, self._rest = self._rest, b""
        while self._waiting:
            line = self._waiting[0].encode(self.stream.encoding, self.stream.errors or "strict")
            if data and len(data) + len(line) > PIPE_BUF:
                break
            data += line
            self._waiting_letters -= len(self._waiting.popleft())
        try:
            written = os.write(descriptor, data[:PIPE_BUF])
        except BlockingIOError:  # another process has filled it meanwhile
            written = 0
        except OSError:  # a full disk, no reader: there is nowhere to say so
            return
        self._rest = data[written:]


class _Room:
    """Whether a descriptor takes a write of `PIPE_BUF` bytes, or a part, without waiting for its reader."""

    def __init__(self, descriptor: int) -> None:
        self._given = descriptor
        self.descriptor = _opened_again(descriptor)
        """Where to write."""
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLOUT)

    @classmethod
    def of(cls, stream: TextIO) -> "_Room | None":
        """Return that of a stream; None for one that is no descriptor, and on Windows."""
        try:
            return cls(stream.fileno())
        except (OSError, ValueError, AttributeError):
            return None

    def is_there(self, *, within_seconds: float = 0.0) -> bool:
        """Say whether there is room; also where no reader is left, so that the write says so."""
        return bool(self._poll.poll(max(within_seconds, 0.0) * 1000))

    def close(self) -> None:
        """Write to the descriptor that was given from now on."""
        if self.descriptor != self._given:
            self._poll.unregister(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = self._given
            self._poll.register(self.descriptor, select.POLLOUT)


def _opened_again(descriptor: int) -> int:
    """Open a pipe or a terminal again, for writes that never wait; what has no such name stays as it is.

    Other processes share what was given: for them a write must go on to wait.
    """
    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
        return descriptor
    try:
        return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's, as a container's often is: there `PIPE_BUF` is all that may be written
        return descriptor


class _EventLoop(Protocol):
    """What is needed of asyncio's."""

    def call_soon(self, callback: Callable[[], None]) -> object: ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object: ...

    def call_soon_threadsafe(
        self, callback: Callable[[float, Callable[[], None]], object], *arguments: object
    ) -> object: ...


def _running_loop() -> _EventLoop | None:
    """Return the event loop that runs this code.

    None does where asyncio is not loaded, as in a short command: that takes a while.
    """
    loaded = sys.modules.get("asyncio")
    try:
        return None if loaded is None else cast("_EventLoop", loaded.get_running_loop())
    except RuntimeError:
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
