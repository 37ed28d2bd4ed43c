"""What a node may ask of the registry before and after it has proven itself (§2).

Figures only; who is held to them is told where each is enforced. `docs/operating.md` explains them
to operators.
"""

from dataclasses import dataclass

from gpu_agent.server.allowance import Rate
from gpu_agent.wire.codec import MAX_FRAME_BYTES

_FRAMES_AHEAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one registry. Counts are connections unless their name says otherwise."""

    max_connections: int = 16384
    max_handshakes: int = 4096
    """Peers whose handshake is not over; beyond, the one that has taken longest makes room."""
    max_unregistered: int = 12288
    """Peers that came in and have not registered; beyond, others are told to come later."""
    max_unregistered_per_origin: int = 10240
    handshake_timeout_seconds: float = 5.0
    handshake_patience_seconds: float = 4.0
    """A handshake that waited for its turn for longer is told to come later: its peer is about to give up."""
    registration_timeout_seconds: float = 10.0
    """A connection without a valid registration by then is closed with 1008."""
    close_timeout_seconds: float = 2.0

    max_handshake_bytes: int = 16 * 1024
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_unsent_bytes: int = 64 * 1024
    """A peer that leaves more than this unread is cut off."""
    max_held_bytes: int = 64 * 1024 * 1024
    """Of all peers' unfinished messages and unread answers together; beyond, the largest go."""

    frames_per_second: float = 100.0
    """Of one connection, of any kind; one counts again for each 2 KiB. Far above any rhythm that is told."""
    frames_at_once: int = 1200
    """Room for two of the longest."""
    errands_per_minute: float = 60.0
    """Of one node over all its connections, or of one connection where none is proven: readable messages that
    are no beats, and unreadable ones."""
    errands_at_once: int = 60

    @property
    def frames(self) -> Rate:
        """How fast the frames of one connection may come; most beats need not even ask for the time."""
        ahead = min(_FRAMES_AHEAD, self.frames_at_once // 2)
        return Rate.of(per_second=self.frames_per_second, at_once=self.frames_at_once, ahead=ahead)

    @property
    def errands(self) -> Rate:
        """How fast the messages besides beats of one connection may come."""
        return Rate.of(per_second=self.errands_per_minute / 60, at_once=self.errands_at_once)
