"""An instance's own copy of what etcd stores, by a watch: who leads, who the instances are, all documents.

One thread reads everything, then each change; the copy itself belongs to the event loop. A watch may lag
behind without a sign, so a decision by the leader's key asks etcd again (`campaign`).
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.registry.persistence import UnreadableDocumentError, load_token
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Credential, Token, TokenState
from gpu_agent.runtime.address import Address
from gpu_agent.server.effects import stored_documents
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.gateway.instance_links import Instance
from gpu_agent.server.leadership.prepared_nodes import PreparedNodes
from gpu_agent.server.tokens import presented_digest
from gpu_agent.store.base import RECENT_EVENTS, Loaded, StoreError, parse_text
from gpu_agent.store.etcd.client import EtcdClient, EtcdError, KeyValue, RefusedError, Watched
from gpu_agent.store.etcd.events import EventReader
from gpu_agent.store.etcd.lease import held_since
from gpu_agent.store.etcd.store import READS_VERSION, VERSION
from gpu_agent.wire.api import RegistryEvent

IDLE_SECONDS = 10.0
"""A watch without a change for this time is opened again: its member of etcd may be gone."""
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads now, as etcd names it."""

    created_at: int
    """The revision that created the leader's key: each leader has a higher one."""
    instance: Instance
    since: float
    """Unix seconds: when it took the lead, by its own clock."""


class Follower:
    """Follows etcd from `start` to `stop`."""

    def __init__(
        self, client: EtcdClient, prefix: str, thresholds: Thresholds, *, changed: Callable[[], None]
    ) -> None:
        """`changed` is called when the leader or an instance has changed."""
        self._client, self._prefix, self._changed = client, f"{prefix}/", changed
        self._leader_key = f"{prefix}/leader".encode()
        self._members = f"{prefix}/members/".encode()
        self._secret_key = f"{prefix}/secret".encode()
        self._commit_key = f"{prefix}/commit".encode()
        self.rows: dict[bytes, bytes] = {}
        """All keys and values below the prefix, as of `revision`."""
        self.revision = 0
        self.leader: Leader | None = None
        self.prepared = PreparedNodes(prefix, thresholds)
        self.event_log = RegistryEventLog()
        """The newest events that are stored."""
        self._events = f"{prefix}/events/".encode()
        self._tokens = f"{prefix}/doc/{DocumentKind.TOKEN.value}/".encode()
        self._is_filled = False
        """Whether everything was read once."""
        self._missed_leader: int | None = None
        """The revision of a leader's key for which `expect_leader` began another watch; 0 for none."""
        self._operators: Mapping[str, Token] | None = None
        """Operators' tokens by digest; None where the copy has changed since they were read."""
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._seen = 0
        """The last revision that the thread passed to the loop."""
        self._seen_commit: bytes | None = None
        """The last commit, as of that revision."""

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="etcd-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop following; the thread ends by itself."""
        self._ended.set()

    def expect_leader(self, created_at: int) -> None:
        """Compare the copy with the revision of the leader's key in etcd, 0 where there is none.

        A copy that lacks it follows another member of etcd: its own may be gone without a sign.
        This happens once per leader, since a new watch takes time.
        """
        known = 0 if self.leader is None else self.leader.created_at
        is_behind = created_at > known or (created_at == 0 and known > 0)
        if is_behind and created_at != self._missed_leader:
            self._missed_leader = created_at
            self._client.end_watches()

    def instances(self) -> list[Instance]:
        """Return the instances that run, by name."""
        found = (parse_instance(value) for key, value in self.rows.items() if key.startswith(self._members))
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    @property
    def secret(self) -> str | None:
        """The secret by which instances authenticate each other."""
        value = self.rows.get(self._secret_key)
        return None if value is None else value.decode()

    @property
    def term(self) -> int:
        """The term of the leader, or of the last one; 0 before the first."""
        return int(self.rows.get(f"{self._prefix}term".encode(), b"0"))

    @property
    def nodes(self) -> int:
        """How many nodes are stored."""
        start = f"{self._prefix}doc/{DocumentKind.NODE.value}/".encode()
        return sum(key.startswith(start) for key in self.rows)

    def operator(self, token: str) -> Credential | None:
        """Return the operator that a token authenticates, by this copy; None for an unknown token."""
        if self._operators is None:
            self._operators = {one.digest: one for one in self._read_tokens()}
        found = self._operators.get(presented_digest(token))
        live = found is not None and found.state(time.monotonic()) is TokenState.LIVE
        return found.credential if found is not None and live else None

    def _read_tokens(self) -> Iterator[Token]:
        wall, now = time.time(), time.monotonic()
        for key, value in self.rows.items():
            if key.startswith(self._tokens):
                document = parse_text(value.decode())
                change = Change(DocumentKind.TOKEN, key[len(self._tokens) :].decode(), document)
                for stored in stored_documents([change], wall):
                    with suppress(UnreadableDocumentError):  # the leader logs it
                        yield load_token(stored, now)

    # The thread.

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._read()
                self._watch()
            except EtcdError:
                self._ended.wait(_PAUSE_SECONDS)

    def _read(self) -> None:
        start = self._prefix.encode()
        end = start[:-1] + b"0"
        revision = self._client.revision(start)
        rows, leader_created_at = {}, 0
        for one in self._client.read(start, end, revision=revision):
            rows[one.key] = one.value
            if one.key == self._leader_key:
                leader_created_at = one.create_revision
        self._seen, self._seen_commit = revision, rows.get(self._commit_key)
        self._post(self._replace, rows, revision, leader_created_at)

    def _watch(self) -> None:
        """Follow until etcd has compacted a revision that was not seen, or has another history.

        Then everything is read again.
        """
        start = self._prefix.encode()
        end = start[:-1] + b"0"
        while not self._ended.is_set():
            try:
                if not self._is_same_history():
                    return
                watch = self._client.watch(start, end, revision=self._seen + 1, idle_seconds=IDLE_SECONDS)
                for changes in watch:
                    commits = [one.value for one in changes if one.key == self._commit_key]
                    self._seen, self._seen_commit = changes[-1].revision, [self._seen_commit, *commits][-1]
                    self._post(self._apply, changes)
            except RefusedError:
                return
            except EtcdError:
                self._ended.wait(_PAUSE_SECONDS)

    def _is_same_history(self) -> bool:
        """Whether etcd still has what was seen: a snapshot of it that is restored begins another history.

        The revisions of that one say nothing of this one. Raises `RefusedError` for one that is not reached.
        """
        key = self._commit_key
        found = self._client.read(key, key + b"\0", revision=self._seen)
        return next((one.value for one in found), None) == self._seen_commit

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - handed on
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop has ended
            self._ended.set()

    # The loop.

    def _replace(self, rows: dict[bytes, bytes], revision: int, leader_created_at: int) -> None:
        self.rows, self.revision, self._operators = rows, revision, None
        self.prepared.replace(rows, time.monotonic())
        stored = _events_in(value for key, value in sorted(rows.items()) if key.startswith(self._events))
        recent = Loaded([], stored[-RECENT_EVENTS:], {})
        if not self._is_filled:
            self.event_log.restore(recent)
        elif self._goes_on(stored):
            self._publish(stored)
        else:
            self.event_log.begin_again(recent)
        self._is_filled = True
        self._lead(rows.get(self._leader_key), leader_created_at)
        self._changed()

    def _apply(self, changes: Sequence[Watched]) -> None:
        notable, now = False, time.monotonic()
        for one in changes:
            self.prepared.changed(one.key, now, deleted=one.value is None)
            if one.value is None:
                self.rows.pop(one.key, None)
            else:
                self.rows[one.key] = one.value
            if one.key == self._leader_key:
                self._lead(one.value, one.created_at)
                notable = True
            if one.key.startswith(self._tokens):
                self._operators = None
            notable |= one.key.startswith(self._members) or one.key == self._secret_key
        self._publish(
            _events_in(one.value for one in changes if one.value and one.key.startswith(self._events))
        )
        self.revision = changes[-1].revision
        if notable:
            self._changed()

    def _goes_on(self, stored: Sequence[RegistryEvent]) -> bool:
        """Whether the events that are stored continue those of this copy."""
        newest = self.event_log.newest
        if newest is None:
            return True
        if not stored or (stored[-1].id or 0) < (newest.id or 0):
            return False
        return all(one == newest for one in stored if one.id == newest.id)

    def _publish(self, stored: Iterable[RegistryEvent]) -> None:
        """Publish those that are new; a key may hold old ones that were compacted."""
        last_id = self.event_log.last_id
        for event in stored:
            if (event.id or 0) > last_id:
                self.event_log.publish(event)

    def _lead(self, value: bytes | None, created_at: int) -> None:
        instance = None if value is None else parse_instance(value)
        if value is None or instance is None:
            self.leader = None
        else:
            self.leader = Leader(created_at, instance, held_since(value) or instance.since)


def _events_in(values: Iterable[bytes]) -> list[RegistryEvent]:
    reader, found = EventReader(), []
    for value in values:
        with suppress(ValueError, TypeError):  # damaged: the leader refuses to begin with it
            found += reader.read(value)
    return found


def check_auth(own: Instance, others: Iterable[KeyValue]) -> None:
    """Raise `StoreError` where other instances that run disagree on who must present a token.

    With the lead such an instance would open the whole registry to everyone, or close it to all its nodes.
    """
    for one in others:
        other = parse_instance(one.value)
        if other is not None and other.name != own.name and other.auth_on is not own.auth_on:
            raise StoreError(
                f"this instance has auth {_on_or_off(own)}, and {other.name!r} of the same registry has it "
                f"{_on_or_off(other)}: set auth alike for all of them; to change it, stop all instances first"
            )


def _on_or_off(instance: Instance) -> str:
    return "on" if instance.auth_on else "off"


def instance_document(instance: Instance) -> dict[str, object]:
    """Serialize the description of an instance."""
    return {
        "name": instance.name,
        "running_since": instance.since,
        "link": str(instance.link),
        "api": instance.api,
        "pin": instance.pin,
        "auth_on": instance.auth_on,
        READS_VERSION: VERSION,
    }


def parse_instance(value: bytes) -> Instance | None:
    """Load it; None where the value is none, such as the leader's key of a registry without instances."""
    try:
        document = json.loads(value)
        return Instance(
            name=document["name"],
            since=float(document["running_since"]),
            link=Address.parse(document["link"]),
            api=document["api"],
            pin=document["pin"],
            auth_on=document.get("auth_on") is not False,
        )
    except (ValueError, KeyError, TypeError):
        return None
