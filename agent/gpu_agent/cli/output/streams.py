"""The program's standard streams, whatever was handed to it: closed, full, or with no reader.

Output may get lost; the work and the exit code may not. A fault of stdout is kept and reported once, at the
end, unless the reader closed the pipe. A fault of stderr cannot be reported. Streams that are no plain file
or pipe, such as a Windows console, are left alone.
"""

import codecs
import contextlib
import io
import os
import select
import sys
from typing import TextIO, cast

from gpu_agent.cli.output.text import printable
from gpu_agent.runtime.logs import redact_secrets

_STDIN, _STDOUT, _STDERR = range(3)
_PLAINER = {"→": "->", "…": "..."}


class _Descriptor(io.FileIO):
    """A descriptor that takes everything, and keeps its first fault instead of raising it."""

    fault: OSError | None = None

    def write(self, data: object, /) -> int:
        """Write, or after a fault let it go."""
        view = memoryview(cast("bytes", data))
        if self.fault is None:
            try:
                return super().write(view)
            except OSError as fault:
                self.fault = fault
        return view.nbytes


def prepare_streams() -> None:
    """Give the program streams that cannot fail it; to be called before anything else is opened."""
    _occupy_closed_descriptors()
    codecs.register_error(_plainer.__name__, _plainer)
    sys.stdout = _tolerant(sys.stdout, _STDOUT, errors=_plainer.__name__)
    sys.stderr = _tolerant(sys.stderr, _STDERR, errors="backslashreplace")


def stdout_fault() -> str | None:
    """What kept the output from being written, in words; `None` when it was, or its reader left."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    fault = raw.fault if isinstance(raw, _Descriptor) else None
    if fault is None or isinstance(fault, BrokenPipeError):
        return None
    return fault.strerror or str(fault)


def reader_left() -> bool:
    """Say whether whoever read the output wants no more of it: what goes on for ever may end then."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    return isinstance(raw, _Descriptor) and (raw.fault is not None or _is_abandoned(raw))


def print_stderr(sentence: str) -> None:
    """Say on stderr what a person should know, if there is anybody to hear it.

    A sentence may quote whoever was asked, a file's name or an argument: none of them steers the terminal,
    and no token that was written where it does not belong is written once more.
    """
    if sys.stderr is not None:
        shown = "\n".join(map(printable, redact_secrets(sentence).split("\n")))
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"gpu-agent: {shown}\n")
            sys.stderr.flush()


def _is_abandoned(raw: _Descriptor) -> bool:
    """Say whether nobody can read a pipe any more, without writing to it."""
    if not hasattr(select, "poll"):
        return False  # Windows: the next word will tell
    poll = select.poll()
    poll.register(raw, 0)  # what went wrong is told unasked
    return bool(poll.poll(0))


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """Write what a locale has no letter for in those that every locale has."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - nothing is read by it
    return _PLAINER.get(error.object[error.start], "?"), error.start + 1


def _occupy_closed_descriptors() -> None:
    """Else the first file or pipe that is opened would become somebody's stdout."""
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
