"""A cursor in the header of a file: it reads in pieces, up to a bound, and skips what is not wanted.

What is skipped is never read, so a header of kilobytes before weights of gigabytes costs a few small reads.
"""

import os

_FIRST_PIECE_BYTES = 16_384
_SMALL_PIECE_BYTES = 4_096
"""Read after a skip."""
_LARGEST_PIECE_BYTES = 131_072
_MOST_BYTES = 64 << 20
"""Read of one file: the longest known header, that of a vocabulary of 500 000 words, has a quarter."""
_PRINTED = bytes(range(32, 127)) + b"\t\n\r\f"


class CutShortError(OSError):
    """The file ends before its header does."""

    def __init__(self) -> None:
        super().__init__("it ends within its header")


class ForeignFileError(OSError):
    """The file is not of the format that its name states; the text says what is wrong."""


class LongHeaderError(ForeignFileError):
    """More of it would have to be read than the bound allows."""


class FileCursor:
    """A position in an open file, and the bytes around it."""

    def __init__(self, descriptor: int, size: int) -> None:
        """`size` is the file's."""
        self.size = size
        self._descriptor = descriptor
        self._data = b""
        self._begin = 0
        """Where in the file `_data` begins."""
        self._at = 0
        """The position, from there."""
        self._read_to = 0
        """Where the file itself is read next."""
        self._piece = _FIRST_PIECE_BYTES
        self._left = _MOST_BYTES

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._begin + self._at

    def move_to(self, position: int) -> None:
        """Go to a position; what is skipped is not read."""
        if position > self.size:
            raise CutShortError
        if self._begin <= position <= self._begin + len(self._data):
            self._at = position - self._begin
        else:
            self._data, self._begin, self._at = b"", position, 0
            self._piece = _SMALL_PIECE_BYTES

    def window(self, least: int) -> tuple[bytes, int]:
        """Bytes of the file, at least that many from the position on, and where in them the position is."""
        if self._at + least > len(self._data):
            self._fill(least)
        return self._data, self._at

    def peek(self, most: int) -> bytes:
        """The next bytes, as far as there are any, without moving on."""
        count = min(most, self.size - self.position)
        data, at = self.window(count)
        return data[at : at + count]

    def read(self, count: int) -> bytes:
        """The next bytes."""
        data, at = self.window(count)
        self._at = at + count
        return data[at : at + count]

    def read_byte(self) -> int:
        """The next byte."""
        data, at = self.window(1)
        self._at = at + 1
        return data[at]

    def read_u32(self) -> int:
        """The next four bytes, little-endian."""
        return int.from_bytes(self.read(4), "little")

    def read_u64(self) -> int:
        """The next eight bytes, little-endian."""
        return int.from_bytes(self.read(8), "little")

    def _fill(self, least: int) -> None:
        """Read on; pieces grow as long as nothing is skipped."""
        position = self.position
        if position + least > self.size:
            raise CutShortError
        rest = self._data[self._at :]
        count = max(least - len(rest), min(self._piece, self.size - position - len(rest)))
        self._left -= count
        if self._left < 0:
            raise LongHeaderError(f"its header is longer than {_MOST_BYTES >> 20} MiB")
        if self._read_to != position + len(rest):
            os.lseek(self._descriptor, position + len(rest), os.SEEK_SET)
        self._data = rest + os.read(self._descriptor, count)
        self._read_to = position + len(self._data)
        self._begin, self._at = position, 0
        self._piece = min(2 * self._piece, _LARGEST_PIECE_BYTES)
        if len(self._data) < least:
            raise CutShortError  # it was cut after its size was read


def foreign_content(head: bytes) -> str | None:
    """What a file that begins with `head` is in place of weights; `None` where that is not known."""
    if found := substitute(head):
        return found
    return "it is a text file" if head and not head.translate(None, _PRINTED) else None


def substitute(head: bytes) -> str | None:
    """What a program left in place of the file that it did not fetch, if it did."""
    start = head.lstrip()[:16].lower()
    if start.startswith(b"version https://"):
        return "it is a pointer of Git LFS; fetch the file that it stands for"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, saved in place of the file"
    return None
