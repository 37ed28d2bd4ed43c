"""Server-sent events out of lines, as the WHATWG describes them. Opens nothing and understands no data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One block of a stream; without data it says at most which id has been reached."""

    id: str | None
    data: str


def messages(lines: Iterable[bytes]) -> Iterator[Message]:
    """Read blocks, comments too; a block that the end of the stream cuts off never was one."""
    reached: str | None = None
    data: list[str] = []
    for raw in lines:
        words = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not words:
            yield Message(reached, "\n".join(data))
            reached, data = None, []
            continue
        name, _, value = words.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            reached = value
