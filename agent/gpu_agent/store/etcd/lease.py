"""One writer at a time: a key in etcd that exists for as long as its lease is renewed.

A transaction that compares the revision which created the key is applied only while the key is the writer's
(the fence). The writer itself trusts the lease for less time than etcd does: from before the renewal was
sent, by a clock that goes on while the machine sleeps, less a second.
"""

import json
import os
import socket
import threading
import time
from calendar import timegm
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

from gpu_agent.store.etcd.client import (
    EtcdClient,
    EtcdError,
    Get,
    IsCreatedAt,
    IsValue,
    KeyValue,
    OutcomeUnknownError,
    Put,
)

TTL_SECONDS = 5
"""A writer that renews it no more loses the key after this time."""
MARGIN_SECONDS = 1.0
"""The writer stops this long before, for clocks that run at different speeds."""
_RENEWALS_PER_TTL = 4
_RENEWAL_SECONDS = 1.0
"""How long one renewal may take: then another member still has time for the next."""
_LOOK_SECONDS = 0.2
_REVOKE_SECONDS = 1.0

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class LeaseHeldError(EtcdError):
    """Another writer holds the key; its text says which one."""


class Lease:
    """Holds the key `key` while it can; a thread renews its lease from `acquire` to `release`."""

    def __init__(
        self,
        client: EtcdClient,
        key: bytes,
        *,
        ttl_seconds: int = TTL_SECONDS,
        holder: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """`holder` is what the key's value says besides host, process and time."""
        self.key = key
        self._holder = holder
        self.lost = True
        """Whether etcd has deleted the key, or never made it: `acquire` makes another."""
        self.created_at = 0
        """The revision that created the key: what a fenced transaction compares."""
        self._client = client
        self._ttl_seconds = ttl_seconds
        self._valid_until = 0.0
        self._lease = 0
        self._process = _process()
        """Of who takes the key, and when."""
        self._ended = threading.Event()
        self._renewals: threading.Thread | None = None

    @property
    def valid(self) -> bool:
        """Whether the key is certain to be held now."""
        return not self.lost and boot_time() < self._valid_until

    @property
    def fence(self) -> IsCreatedAt:
        """What each transaction of this writer compares."""
        return IsCreatedAt(self.key, self.created_at)

    def acquire(self, *, wait_seconds: float = 0.0) -> None:
        """Take the key; raises `LeaseHeldError` where another holds it for all this time, or `EtcdError`.

        A writer that was killed holds it for one TTL more.
        """
        deadline = time.monotonic() + wait_seconds
        while (holder := self._try_to_acquire()) is not None:
            if time.monotonic() >= deadline:
                raise LeaseHeldError(holder)
            time.sleep(_LOOK_SECONDS)

    def announce(self, holder: Mapping[str, object]) -> None:
        """Change what the key's value says, now or with the next `acquire`; raises `EtcdError`."""
        self._holder = holder
        if not self.lost:
            self._client.transact([self.fence], [self._value(self._lease)])

    def release(self) -> None:
        """Give the key back; a second time does nothing. Without an answer from etcd it ends with its TTL."""
        self._ended.set()
        if self._renewals is not None:
            self._renewals.join()
            self._renewals = None
        if not self.lost:
            self.lost = True
            with suppress(EtcdError):
                self._client.revoke(self._lease, seconds=_REVOKE_SECONDS)

    def return_late(self, found: KeyValue) -> bool:
        """Give the key back that `release` could not, since etcd did not answer; raises `EtcdError`.

        Returns whether what was found is that key: while etcd has no quorum it deletes none, and when it is
        back the lease has its whole TTL again.
        """
        if not self._ended.is_set() or found.lease != self._lease:
            return False
        self._client.revoke(self._lease, seconds=_REVOKE_SECONDS)
        return True

    def _try_to_acquire(self) -> str | None:
        """Return who holds the key, None where it is ours now."""
        sent_at = boot_time()
        lease, seconds = self._client.grant(self._ttl_seconds)
        self._process = _process()
        put = self._value(lease)
        created_at, holder = self._create(put)
        if created_at is None:
            with suppress(EtcdError):
                self._client.revoke(lease, seconds=_REVOKE_SECONDS)
            return holder
        self._end_renewals()
        self._lease, self.created_at = lease, created_at
        self._valid_until, self.lost = sent_at + seconds - MARGIN_SECONDS, False
        self._renewals = threading.Thread(
            target=self._renew, args=(lease, seconds / _RENEWALS_PER_TTL), name="etcd-lease", daemon=True
        )
        self._renewals.start()
        return None

    def _value(self, lease: int) -> Put:
        return Put(self.key, json.dumps({**self._process, **self._holder}).encode(), lease)

    def _create(self, put: Put) -> tuple[int | None, str]:
        """Create the key where there is none; returns the revision that did, None for another's, and whose.

        Sent again after a lost answer: the key shows by its lease whether the first one was applied.
        """
        try:
            outcome = self._client.transact([IsValue(self.key, None)], [put], [Get(self.key)])
        except OutcomeUnknownError:
            outcome = self._client.transact([IsValue(self.key, None)], [put], [Get(self.key)])
        if outcome.succeeded:
            return outcome.revision, ""
        there = outcome.found[self.key]
        return (there.create_revision if there.lease == put.lease else None), _holder_words(there.value)

    def _end_renewals(self) -> None:
        if self._renewals is not None:
            self._ended.set()
            self._renewals.join()
        self._ended.clear()

    def _renew(self, lease: int, interval_seconds: float) -> None:
        """Renew the lease until `release`, or until etcd says that it has ended."""
        pause = interval_seconds
        while not self._ended.wait(pause):
            sent_at = boot_time()
            try:
                seconds = self._client.keep_alive(lease, seconds=_RENEWAL_SECONDS)
            except EtcdError:
                pause = _LOOK_SECONDS
                continue
            pause = interval_seconds
            if seconds <= 0:
                self.lost = True
                return
            self._valid_until = sent_at + seconds - MARGIN_SECONDS


def boot_time() -> float:
    """Return seconds on a clock that goes on while the machine sleeps, where the system has one."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


def _process() -> dict[str, object]:
    since = time.strftime(_TIME, time.gmtime())
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def held_since(value: bytes) -> float | None:
    """Return when the holder of a key took it, in Unix seconds; None where the value does not say."""
    with suppress(ValueError, KeyError, TypeError):
        return float(timegm(time.strptime(json.loads(value)["since"], _TIME)))
    return None


def _holder_words(value: bytes) -> str:
    try:
        holder = json.loads(value)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another registry"
