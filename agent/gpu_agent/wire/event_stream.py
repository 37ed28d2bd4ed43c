"""Server-sent events as a client reads them, line by line (WHATWG HTML, §9.2)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One block of server-sent events; without data it says at most which id has been reached."""

    id: str | None
    data: str


class EventStreamParser:
    """Reads a stream's lines; a block that the stream's end cuts off is none."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._data: list[str] = []

    def read_line(self, text: str) -> SseMessage | None:
        """Return the block that this line ends, else None; a comment is a block without data."""
        text = text.rstrip("\r\n")
        if not text:
            message = SseMessage(self._id, "\n".join(self._data))
            self._id, self._data = None, []
            return message
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None
