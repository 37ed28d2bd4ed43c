"""What a connection needs of whoever keeps it, so that neither has to know how the other works."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from gpu_agent.server.allowance import Rate
from gpu_agent.server.handshake import Handshake, TurnedAway
from gpu_agent.server.limits import Limits
from gpu_agent.server.quieting import Quieting
from gpu_agent.server.turns import Turns

Connection_contra = TypeVar("Connection_contra", contravariant=True)
"""A connection."""


class Keeper(Protocol[Connection_contra]):
    """Keeps all connections of one port."""

    @property
    def limits(self) -> Limits:
        """What its peer may ask."""

    @property
    def frames(self) -> Rate:
        """How fast a peer's frames may come."""

    @property
    def errands(self) -> Rate:
        """How fast a peer's messages besides beats may come."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """The clock that rates are measured by."""

    @property
    def turns(self) -> Turns:
        """Where what may wait waits."""

    @property
    def quieting(self) -> Quieting:
        """Where offences are told."""

    def lend_buffer(self, *, registered: bool) -> memoryview:
        """Lend memory to read into, used up before the next connection reads."""

    def connected(self, connection: Connection_contra) -> None:
        """A handshake begins."""

    def turn_away(self, connection: Connection_contra, handshake: Handshake) -> TurnedAway | None:
        """Say why a peer may not come in; None when it may."""

    def came_in(self, connection: Connection_contra) -> None:
        """A handshake succeeded."""

    def registered(self, connection: Connection_contra) -> None:
        """A connection has shown to be a node's."""

    def frame_arrived(self, connection: Connection_contra, payload: bytes) -> None:
        """Take in a text frame."""

    def holds(self, connection: Connection_contra, held_bytes: int) -> None:
        """Note how much is held for a connection."""

    def forget(self, connection: Connection_contra) -> None:
        """A connection is gone."""
