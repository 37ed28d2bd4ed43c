"""What happened, line by line: the last of it to be read, all of it in one number to be compared."""

from collections import deque
from zlib import crc32

REMEMBERED_LINES = 400


class Trace:
    """Lines with their virtual time. Two runs of a seed have the same mark, or something is not seeded."""

    def __init__(self, *, whole: bool = False) -> None:
        self.lines: deque[str] = deque(maxlen=None if whole else REMEMBERED_LINES)
        self.count = 0
        self._mark = 0

    def add(self, line: str) -> None:
        """Write a line."""
        self._mark = crc32(line.encode(), self._mark)
        self.count += 1
        self.lines.append(line)

    @property
    def mark(self) -> str:
        """All lines in one number."""
        return f"{self.count}-{self._mark:08x}"

    def tail(self, count: int) -> str:
        """Write down the last lines."""
        return "\n".join(list(self.lines)[-count:])
