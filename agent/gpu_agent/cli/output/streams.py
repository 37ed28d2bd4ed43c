"""The program's standard streams, whatever was handed to it: closed, full, or with no reader.

Output may get lost; the work and the exit code may not. A fault of stdout is reported once, at the end,
unless the reader closed the pipe. A fault of stderr cannot be reported. Streams that are no plain file
or pipe, such as a Windows console, are left alone.
"""

import codecs
import contextlib
import io
import os
import select
import sys
from types import TracebackType
from typing import Self, TextIO, cast

_STDIN, _STDOUT, _STDERR = range(3)
_ERASE = "\r\x1b[K"
_PLAINER = {"→": "->", "…": "..."}


class _Descriptor(io.FileIO):
    """A descriptor that takes everything, and keeps its first fault instead of raising it.

    An unbuffered stream (`PYTHONUNBUFFERED`) would lose what is left of a write that a signal ends early, or
    that finds a full pipe which another process made non-blocking.
    """

    fault: OSError | None = None

    def write(self, data: object, /) -> int:
        """Write all, or after a fault discard."""
        view = memoryview(cast("bytes", data)).cast("B")
        left = view
        while left and self.fault is None:
            try:
                written = super().write(left)
                if written is None:  # it does not block, and is full
                    select.select((), (self,), ())
            except OSError as fault:
                self.fault = fault
            else:
                left = left[written or 0 :]
        return view.nbytes


def prepare_streams() -> None:
    """Replace streams that could fail the program; call it before anything else is opened."""
    _occupy_closed_descriptors()
    codecs.register_error(_plainer.__name__, _plainer)
    sys.stdout = _tolerant(sys.stdout, _STDOUT, errors=_plainer.__name__)
    sys.stderr = _tolerant(sys.stderr, _STDERR, errors="backslashreplace")


def stdout_fault() -> str | None:
    """Say why the output could not be written; `None` when it was, or its reader closed the pipe."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    fault = raw.fault if isinstance(raw, _Descriptor) else None
    if fault is None or isinstance(fault, BrokenPipeError):
        return None
    return fault.strerror or str(fault)


def reader_left() -> bool:
    """Say whether the output's reader has closed it: a command that goes on for ever may end then."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    return isinstance(raw, _Descriptor) and (raw.fault is not None or _is_abandoned(raw))


def print_stderr(sentence: str) -> None:
    """Print what a person should know to stderr, where there is one.

    A sentence may quote an answer, a file's name or an argument: none of them steers the terminal, and a
    token that was written in a wrong place is redacted.
    """
    if sys.stderr is not None:
        from gpu_agent.cli.output.text import printable
        from gpu_agent.runtime.logs import redact_secrets

        shown = "\n".join(map(printable, redact_secrets(sentence).split("\n")))
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"gpu-agent: {shown}\n")
            sys.stderr.flush()


class StatusLine:
    """One line on stderr, redrawn in place on a terminal until its block ends; elsewhere a line a change."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._shown = ""
        self._drawn = False

    def __enter__(self) -> Self:
        """Begin with nothing shown."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Erase the line."""
        self.erase()

    def erase(self) -> None:
        """Erase the line, for others to print; the next words draw it again."""
        if self._drawn:
            self._write(_ERASE)
            self._drawn = False

    def show(self, words: str, *, left: str = "", more: str = "") -> None:
        """Show how things stand; `left`, the time that is left, is no change.

        A terminal that is too narrow loses the end of `more`.
        """
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._drawn = True
            import shutil

            width = shutil.get_terminal_size().columns - 1
            self._write(f"{_ERASE}{f'{words}{left}{more}'[:width]}")
        elif words + more != self._shown:
            self._write(f"{words}{left}{more}\n")
        self._shown = words + more

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _is_abandoned(raw: _Descriptor) -> bool:
    """Say whether a pipe has lost its reader, without writing to it."""
    if not hasattr(select, "poll"):
        return False  # Windows: the next write shows it
    poll = select.poll()
    poll.register(raw, 0)  # errors are always reported
    return bool(poll.poll(0))


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Write a letter that the locale lacks in letters that every locale has."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - only writing uses it
    return _PLAINER.get(error.object[error.start], "?"), error.start + 1


def _occupy_closed_descriptors() -> None:
    """Else the first file or pipe that is opened would become a standard stream."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - its only parameter
    os.close(descriptor)


def _tolerant(stream: TextIO | None, descriptor: int, *, errors: str) -> TextIO:
    if stream is not None and not _is_plain(stream):
        return stream
    raw = _Descriptor(descriptor, "wb", closefd=False)
    unbuffered = isinstance(stream, io.TextIOWrapper) and stream.write_through
    return io.TextIOWrapper(
        cast("io.BufferedWriter", raw) if unbuffered else io.BufferedWriter(raw),
        encoding="utf-8" if stream is None else stream.encoding,
        errors=errors,
        line_buffering=descriptor == _STDERR or raw.isatty(),
        write_through=unbuffered,
    )


def _is_plain(stream: TextIO) -> bool:
    raw = getattr(stream.buffer, "raw", stream.buffer) if isinstance(stream, io.TextIOWrapper) else None
    return type(raw) is io.FileIO
