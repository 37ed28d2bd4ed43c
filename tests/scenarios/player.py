"""What a player of a scenario is, and what others come to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

TOLD_BY_THE_MESSAGE = {"node_registered", "node_status_changed", "node_register_refused", "registry_error"}
"""Notes that say once more what a message before them said."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a connection, with a token if there is one."""

    token: str | None


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Send this."""

    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """Something that happened inside, for the transcript."""

    text: str


Outward = Dial | HangUp | Frame | Told
"""What the others come to know of a player."""


class Player(Protocol):
    """What the theatre needs of one."""

    @property
    def name(self) -> str: ...
    @property
    def deadline(self) -> float: ...
    def wake(self, now: float) -> list[Outward]: ...
    def opened(self, now: float) -> list[Outward]: ...
    def refused(self, detail: str, now: float, *, http_status: int | None = None) -> list[Outward]: ...
    def hear(self, frame: str, now: float) -> list[Outward]: ...
    def closed(self, code: int, detail: str, now: float) -> list[Outward]: ...


def listed(fields: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())
