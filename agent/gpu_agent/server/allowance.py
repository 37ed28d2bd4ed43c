"""How much of something a peer may do: so much at once, and so much a second after that.

Knows no clock: the time is handed in, in monotonic seconds.
"""


class Allowance:
    """What is left to one peer; it fills up again with time."""

    __slots__ = ("_at_once_seconds", "_paid_until", "_price_seconds")

    def __init__(self, *, per_second: float, at_once: float) -> None:
        self._price_seconds = 1 / per_second
        self._at_once_seconds = at_once / per_second
        self._paid_until = 0.0

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take from what is left; False, and nothing taken, when it is not enough."""
        paid_until = (max(now, self._paid_until)) + amount * self._price_seconds
        if paid_until - now > self._at_once_seconds:
            return False
        self._paid_until = paid_until
        return True

    def refills_in(self, now: float) -> float:
        """Return in how many seconds there is enough for one again."""
        return max(0.0, self._paid_until + self._price_seconds - self._at_once_seconds - now)
