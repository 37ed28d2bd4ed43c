"""Connection attempts: to which address, with which credential, after which delay, and why the last failed.

Delays double up to a ceiling, with full jitter; a registration that lasts resets them. A registry under load
gives each agent a time of its own (`Retry-After`), so the jitter on top stays short. Chance is handed in.

A registry may have several addresses. Each agent has them in an order of its own, so that a fleet spreads
over them, and spreads again over the others when one is gone. A failure that may be the address's alone
leads to the next address soon; the delay grows once all have failed. One that works is never left. A refusal
that the whole registry stands by delays the next attempt as it would with one address.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from gpu_agent.session.errors import Outcome, SessionEnd, clipped
from gpu_agent.session.types import ConnectFailed, Credential, SessionSettings

_UNAUTHORIZED, _FORBIDDEN = 401, 403
_CEILING_SPREAD = 0.5
"""A delay at the ceiling lies within a quarter of it, either way."""

_ASKED_BOUND_SECONDS = 16.0
"""The most jitter on top of what a peer asked for. With a minute the last nodes came back long after a busy
registry was at rest; without doubling up to here all come again while it still is busy."""

CREDENTIAL_STEP = (
    "have its operator run `gpu-agent registry node readmit {node_id}`, and give this agent the token that "
    "it prints; for a node that was removed there, `gpu-agent registry token create`"
)
"""For a node with an id whose credentials are refused; `status`, `doctor` and the log say the same."""
_CREDENTIAL_REFUSED = {
    (_UNAUTHORIZED, Credential.JOIN): "the registry knows neither the node token nor the join token: "
    f"{CREDENTIAL_STEP}",
    (_UNAUTHORIZED, Credential.BEST): "the registry does not know this credential, or requires one: "
    "ask its operator for a join token",
    (_FORBIDDEN, Credential.JOIN): "the registry does not know the node token, and does not accept this "
    f"join token, which may be used up: {CREDENTIAL_STEP}",
    (_FORBIDDEN, Credential.BEST): "the registry does not accept this credential, which may be used up: "
    "ask its operator for a join token",
}


class ConnectionAttempts:
    """The attempts to get a session that lasts, one after the other."""

    def __init__(
        self,
        settings: SessionSettings,
        *,
        addresses: Sequence[str],
        has_token: bool,
        draw: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._draw = draw
        self._addresses = _shuffled(addresses, draw)
        self.address = self._addresses[0]
        """The one in use, or tried next."""
        self._failed: set[str] = set()
        """The addresses tried in vain in this round."""
        self._free_at: dict[str, float] = {}
        """When an address may be tried that asked for time."""
        self._has_token = has_token
        self._registered_since: float | None = None
        self._backoff = Backoff(
            first_seconds=settings.backoff_first_seconds,
            ceiling_seconds=settings.backoff_ceiling_seconds,
            draw=draw,
        )
        self.credential = Credential.BEST
        self.last_refusal: str | None = None

    @property
    def where(self) -> Mapping[str, object]:
        """The address as a field for the log; empty where there is only one."""
        return {"registry": self.address} if len(self._addresses) > 1 else {}

    def startup_delay(self) -> float:
        """Draw the wait before the first attempt."""
        return self._draw() * self._settings.startup_jitter_seconds

    def fall_back_to_join_token(self, failure: ConnectFailed) -> bool:
        """Whether to try again at once with the join token: the node token was refused (§2)."""
        if failure.http_status != _UNAUTHORIZED or not self._has_token or self.credential is Credential.JOIN:
            return False
        self.credential = Credential.JOIN
        return True

    def explain(self, failure: ConnectFailed, node_id: str | None) -> tuple[str, bool]:
        """Say why an attempt failed, and whether a person must act before one can succeed."""
        credential_refused = _CREDENTIAL_REFUSED.get((failure.http_status or 0, self.credential))
        if credential_refused is not None:
            return credential_refused.format(node_id=node_id or "ID"), True
        return clipped(failure.detail), failure.lasting

    def connected(self) -> None:
        """Note an open socket, which proves nothing yet."""
        self._registered_since = None

    def registered(self, now: float, *, new_token: bool) -> None:
        """Note an ack: from now on the session counts towards stability."""
        if new_token:
            self._has_token, self.credential = True, Credential.BEST
        self.last_refusal = None
        if self._registered_since is None:
            self._registered_since = now

    def next_delay(self, end: SessionEnd, now: float) -> float:
        """Draw the wait before the next attempt: at the next address, with the best credential again."""
        since, self._registered_since = self._registered_since, None
        if since is not None and now - since >= self._settings.stability_seconds:
            self._backoff.reset()
            self._failed.clear()
        self.credential = Credential.BEST
        at_least = min(end.retry_after_seconds or 0.0, self._settings.longest_retry_after_seconds)
        if end.outcome is Outcome.RETRY_ELSEWHERE:
            return self._delay_to_another(now, at_least)
        self.address = next(iter(self._others), self.address)
        if end.outcome is Outcome.RETRY_AT_CEILING:
            return self._backoff.delay_at_ceiling(at_least=at_least)
        return self._backoff.next_delay(at_least=at_least)

    @property
    def _others(self) -> list[str]:
        """The other addresses, the next one first."""
        place = self._addresses.index(self.address)
        return [*self._addresses[place + 1 :], *self._addresses[:place]]

    def _delay_to_another(self, now: float, at_least: float) -> float:
        """Turn to an address that has not failed yet, soon; when all have failed, to the first one free."""
        failed = self.address
        self._failed.add(failed)
        self._free_at[failed] = now + at_least
        waits = {one: max(0.0, self._free_at.get(one, -math.inf) - now) for one in self._others}
        untried = [one for one, wait in waits.items() if one not in self._failed and not wait]
        if untried:
            self.address = untried[0]
            return self._backoff.first_delay()
        self._failed.clear()
        waits[failed] = at_least  # the last entry: of several that are free the others come first
        self.address = min(waits, key=lambda one: waits[one])
        return self._backoff.next_delay(at_least=waits[self.address])


class Backoff:
    """The delay before the next attempt; it doubles until `reset`."""

    def __init__(self, *, first_seconds: float, ceiling_seconds: float, draw: Callable[[], float]) -> None:
        self._first = first_seconds
        self._ceiling = ceiling_seconds
        self._draw = draw
        self._bound = min(first_seconds, ceiling_seconds)

    def first_delay(self) -> float:
        """Draw a delay as short as the first, without a doubling."""
        return self._draw() * min(self._first, self._ceiling)

    def next_delay(self, *, at_least: float = 0.0) -> float:
        """Draw the next delay; on top of the minimum that a peer asked for the jitter stays short."""
        bound = self._bound
        self._bound = min(bound * 2, self._ceiling)
        if at_least:
            bound = min(bound, _ASKED_BOUND_SECONDS)
        return at_least + self._draw() * bound

    def delay_at_ceiling(self, *, at_least: float = 0.0) -> float:
        """Draw a delay around the ceiling: the cause needs a person, so there is no hurry."""
        spread = 1 - _CEILING_SPREAD / 2 + _CEILING_SPREAD * self._draw()
        return max(at_least, self._ceiling * spread)

    def reset(self) -> None:
        """Start from the first delay again: the session has proven stable."""
        self._bound = min(self._first, self._ceiling)


def _shuffled(addresses: Sequence[str], draw: Callable[[], float]) -> list[str]:
    if len(addresses) == 1:
        return [*addresses]
    return sorted(addresses, key=lambda _: draw())
