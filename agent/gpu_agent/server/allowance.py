"""How much of something a peer may do: so much at once, and so much a second after that.

Knows no clock: the time is handed in, in monotonic seconds.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """What is allowed, to each of those who share it."""

    price_seconds: float
    """Time that one takes to be allowed again."""
    at_once_seconds: float
    ahead: int = 0
    """So many more may be paid for at a time, and be had without asking what time it is."""

    @classmethod
    def of(cls, *, per_second: float, at_once: float, ahead: int = 0) -> "Rate":
        """Allow so many at once, those that are paid ahead among them, and so many a second after that."""
        return cls(1 / per_second, (at_once - ahead) / per_second, ahead)

    def after(self, paid_until: float, now: float, amount: float) -> float | None:
        """Return until when somebody has spent once this is added; None when that is not allowed.

        The one number is all that has to be remembered of a peer; it begins as 0.
        """
        then = (max(now, paid_until)) + amount * self.price_seconds
        return None if then - now > self.at_once_seconds else then

    def paid(self, paid_until: float, now: float, missing: int) -> tuple[float, int] | None:
        """Add what is missing and what may be paid ahead: until when is spent then, and how many are left.

        Where there is no room for those ahead, none are left; None when not even what is missing is allowed.
        """
        for ahead in (self.ahead, 0):
            then = self.after(paid_until, now, missing + ahead)
            if then is not None:
                return then, ahead
        return None


class Allowance:
    """What is left to one peer; it fills up again with time."""

    __slots__ = ("_paid_until", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._paid_until = 0.0

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take from what is left; False, and nothing taken, when it is not enough."""
        after = self._rate.after(self._paid_until, now, amount)
        if after is None:
            return False
        self._paid_until = after
        return True

    def refills_in(self, now: float) -> float:
        """Return in how many seconds there is enough for one again."""
        return max(0.0, self._paid_until + self._rate.price_seconds - self._rate.at_once_seconds - now)
