"""The store in etcd: documents and events under one prefix, written by one registry at a time.

    PREFIX/version            of what lies here
    PREFIX/leader             who may write; exists for as long as its lease
    PREFIX/members/NAME       an instance that runs; as long as its lease
    PREFIX/term               how many writers there were
    PREFIX/secret             drawn for each term: by it an instance proves to another that it is one
    PREFIX/commit             number and token of the last commit
    PREFIX/doc/KIND/KEY       a document as JSON
    PREFIX/events/NUMBER      the events of a commit
    PREFIX/redo/TOKEN/PART    operations of a commit that is too large for one transaction

Each transaction compares who may write and the last commit. So it is applied once, in order, by the present
writer, or never; one without an answer is sent again as it is, and the commit that is stored by then shows
whether it was applied. A large commit is staged in parts. The transaction that stores its number makes it
valid; then each part is applied and deleted. A writer that finds parts of the last commit applies them, and
deletes those of any other. One writer may load and save; a backup may run beside it.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.backup import write_backup
from gpu_agent.store.base import (
    RECENT_EVENTS,
    Batch,
    Loaded,
    StoreError,
    UnusableError,
    document_text,
    parse_text,
)
from gpu_agent.store.etcd.client import (
    TRY_SECONDS,
    Access,
    Delete,
    EtcdClient,
    EtcdError,
    Exists,
    Get,
    IsValue,
    Outcome,
    OutcomeUnknownError,
    Put,
    RefusedError,
    UnreachableError,
    endpoint_text,
)
from gpu_agent.store.etcd.events import EventIndex, EventPlan, EventReader, History, event_values
from gpu_agent.store.etcd.lease import TTL_SECONDS, Lease, LeaseHeldError
from gpu_agent.store.etcd.redo import (
    Part,
    Write,
    apply_part,
    decode_part,
    encode_part,
    parts_of,
    stages_of,
)
from gpu_agent.wire.api import RegistryEvent

VERSION = 1
"""The newest form of documents and events that this release reads and writes; it reads the one before, too.
The writer writes the newest form that all instances that run can read: they are upgraded one by one."""
READS_VERSION = "reads_version"
"""The field of an instance's key in which it names its `VERSION`; the first form where it names none."""

_SECRET_BYTES = 32
_SEND_SECONDS = 5.0
"""How long one transaction is sent again."""
_PAUSE_SECONDS = 0.05
_OPEN_SECONDS = TTL_SECONDS + 2.0
"""How long a registry that was killed may still seem to be the writer."""
_COMPACT_SECONDS = 300.0
"""How long etcd holds values that were replaced: for a backup that runs, and for those who follow."""
_COMPACTED = 11
"""The code of a read as of a moment whose values are gone."""

_KINDS = frozenset(kind.value for kind in DocumentKind)
_AFTER, NODE_DOCUMENT = "history_after", "document"
"""A node's document has an envelope."""


ParsedValue = tuple[bytes, Mapping[str, Any]]
"""The value of a document's key, and what `parse_text` returned for it."""


@dataclass(slots=True)
class _Attempt:
    """A commit that is to be stored."""

    token: str
    value: bytes
    """What the key `commit` holds once it is."""
    parts: Sequence[tuple[bytes, Part]]
    """Under their keys in `redo`."""
    plan: EventPlan | None
    unanswered: bool = False
    """Whether it was sent without an answer: it may be stored, or be stored later, or never."""


class EtcdStore:
    """Holds everything under `prefix`; only one registry at a time can open it.

    A lease that is handed in is the caller's: who acquires it before, releases it after, and opens another
    store where it was lost. Without one the store holds a lease of its own and asks for another by itself.
    """

    def __init__(self, access: Access, prefix: str, *, lease: Lease | None = None) -> None:
        """Take the right to write, and finish what the writer before has begun; raises `StoreError`."""
        self._client = EtcdClient(access)
        self._prefix = prefix
        self._own_lease = lease is None
        self._lease = Lease(self._client, self._key("leader")) if lease is None else lease
        self._last: bytes | None = None
        """What the key `commit` holds, as far as is known."""
        self._index: EventIndex | None = None
        """None until all was read."""
        self.secret = ""
        """Of this writer's term: other instances read it, and prove by it that they are some."""
        self.term = 0
        """Of this writer: greater than that of each one before."""
        self.version = VERSION
        """Of what this writer writes."""
        self._open: _Attempt | None = None
        """Was sent and has no answer; no other commit is sent before it has one."""
        self._unapplied: list[tuple[bytes, Part]] = []
        """Parts of the last commit."""
        self._unsure: set[bytes] = set()
        """Keys of those that may be applied already: sent without an answer, or left to another writer."""
        self._copy: dict[bytes, bytes] | None = None
        self._parsed_values: Mapping[bytes, ParsedValue] = {}
        self._staged = ""
        """The token of a commit that was given up and whose parts may lie in `redo`."""
        self._superseded = self._closed = False
        self._revision = self._compact_to = 0
        """Of the last transaction, and the one up to which etcd is compacted next."""
        self._compact_at = 0.0
        try:
            self._take_over()
        except (EtcdError, StoreError) as error:
            self.close()
            raise self._error(error) from error
        except (ValueError, TypeError, KeyError) as error:
            self.close()
            raise self._damaged(error) from error

    @property
    def revision(self) -> int:
        """Of etcd, after this store's last transaction."""
        return self._revision

    def __str__(self) -> str:
        return _place(self._client, self._prefix)

    def load(self) -> Loaded:
        """Return all that is stored; documents of kinds that this release does not know stay there."""
        self._refuse_when_closed()
        copy, self._copy = self._copy, None
        parsed, self._parsed_values = self._parsed_values, {}
        try:
            self._finish()
            self._index, loaded = self._read() if copy is None else self._parsed(copy, parsed)
        except EtcdError as error:
            raise self._error(error) from error
        return loaded

    def load_from(self, copy: dict[bytes, bytes], parsed: Mapping[bytes, ParsedValue]) -> None:
        """Have the next `load` parse these keys and values, which are all below the prefix as of now.

        Those that were `parsed` already are taken as they are, where their values are still the same.
        """
        self._copy, self._parsed_values = copy, parsed

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all of these in one commit; raises `StoreError`."""
        self._refuse_when_closed()
        try:
            self._finish()
            if self._index is None:
                self._index, _ = self._read()
            writes, plan = self._plan(batches, self._index)
            if writes:
                self._commit(parts_of(writes), plan)
        except EtcdError as error:
            raise self._error(error) from error

    def replace(self, loaded: Loaded) -> None:
        """Store this instead of all that is stored, in one commit; raises `StoreError`."""
        self._refuse_when_closed()
        clear = [Delete(*self._range(name)) for name in ("doc", "events")]
        try:
            self._finish()
            self._index = None
            self._commit([clear, *parts_of(list(self._puts(loaded)))], None)
        except EtcdError as error:
            raise self._error(error) from error

    def instances(self) -> list[str]:
        """Return the names of the instances that run; raises `StoreError`."""
        start, end = self._range("members")
        try:
            return [one.key.removeprefix(start).decode() for one in self._client.read(start, end)]
        except EtcdError as error:
            raise self._error(error) from error

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write all that is stored now to an SQLite database; raises `StoreError`."""
        self._refuse_when_closed()
        try:
            _, loaded = self._read()
        except EtcdError as error:
            raise self._error(error) from error
        write_backup(loaded, target, overwrite=overwrite)

    def close(self) -> None:
        """Give back the right to write; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._release()
            self._client.close()

    def _take_over(self) -> None:
        self._check_version()
        if self._own_lease:
            self._lease.acquire(wait_seconds=_OPEN_SECONDS)
        self._check_version()  # while this one waited, a newer release may have written
        last = self._client.get(self._key("commit"))
        if last is not None:
            self._last = last.value
            staged = self._client.read(*self._range("redo", self._token))
            self._unapplied = [(one.key, decode_part(one.value)) for one in staged]
        self._apply()
        term = self._client.get(self._key("term"))
        self.term = 1 + (0 if term is None else int(term.value))
        # From this commit on what the writer before may still send is refused, whatever it compares.
        self.version = self._version_for_all()
        version = Put(self._key("version"), str(self.version).encode())
        own_term = Put(self._key("term"), str(self.term).encode())
        self.secret = secrets.token_urlsafe(_SECRET_BYTES)
        secret = Put(self._key("secret"), self.secret.encode())
        self._commit([[version, own_term, secret, Delete(*self._range("redo"))]], None)

    def _release(self) -> None:
        if self._own_lease:
            self._lease.release()

    def _version_for_all(self) -> int:
        """Return the newest version that all instances can read, and never one below the stored one."""
        stored = self._client.get(self._key("version"))
        members = self._client.read(*self._range("members"))
        lowest = min((_reads(one.value) for one in members), default=VERSION)
        return max(int(stored.value) if stored is not None else 1, min(VERSION, lowest))

    def _check_version(self) -> None:
        stored = self._client.get(self._key("version"))
        if stored is None:
            members = self._range("members")[0]
            others = (
                one.key
                for one in self._client.read(*self._range())
                if one.key != self._lease.key and not one.key.startswith(members)
            )
            if any(others):
                raise UnusableError(
                    f"{self} holds keys of another program; nothing was changed there: name another prefix, "
                    f"such as etcd://{self._client}/{self._prefix}-registry"
                )
        elif not stored.value.isdigit() or int(stored.value) > VERSION:
            raise UnusableError(
                f"{self} was written by a newer release (its version is "
                f"{stored.value.decode(errors='replace')}, this release knows up to {VERSION}); nothing was "
                "changed there: use the newer release"
            )

    # Commits

    @property
    def _number(self) -> int:
        return 0 if self._last is None else int(json.loads(self._last)["number"])

    @property
    def _token(self) -> str:
        return "" if self._last is None else str(json.loads(self._last)["token"])

    def _commit(self, parts: Sequence[Part], plan: EventPlan | None) -> None:
        token = secrets.token_hex(8)
        value = json.dumps({"number": self._number + 1, "token": token}).encode()
        keys = [self._key("redo", token, f"{number:06x}") for number in range(len(parts))]
        self._drive(_Attempt(token, value, list(zip(keys, parts, strict=True)), plan))
        self._apply()
        self._compact_now_and_then()

    def _finish(self) -> None:
        """Bring to its end what an earlier save has left open; raises `StoreError`, `EtcdError`."""
        if self._superseded:
            raise self._superseded_error()
        if self._lease.lost and self._own_lease:
            self._lease.acquire()  # where another has written meanwhile, the last commit is not ours
            begun = [*self._unapplied, *(() if self._open is None else self._open.parts)]
            self._unsure.update(key for key, _ in begun)
        if self._open is not None:
            self._drive(self._open)
        self._apply()

    def _drive(self, attempt: _Attempt) -> None:
        """Bring a commit into etcd, once, however often it is called with the same attempt."""
        if self._staged and self._open is None:
            # Its parts alone: a late copy of this request must not delete those of the next commit.
            self._send([Delete(*self._range("redo", self._staged))])
            self._staged = ""
        if len(attempt.parts) == 1:
            writes: Part = attempt.parts[0][1]
        else:
            self._staged = attempt.token
            *stages, writes = stages_of([Put(key, encode_part(part)) for key, part in attempt.parts])
            if not all(map(self._send, stages)):
                self._adopt(attempt)
                return
        self._open = attempt
        try:
            self._send([*writes, Put(self._key("commit"), attempt.value)])
        except (EtcdError, StoreError):
            if not attempt.unanswered:
                self._open = None
            raise
        self._adopt(attempt)

    def _adopt(self, attempt: _Attempt) -> None:
        """Go on from a commit that is stored."""
        self._open, self._last, self._staged = None, attempt.value, ""
        if len(attempt.parts) > 1:
            self._unapplied = list(attempt.parts)
        if attempt.plan is not None:
            attempt.plan.adopt()

    def _apply(self) -> None:
        """Do what the parts of the last commit say, each once, and delete them.

        A part that is sent again may arrive twice, the second time after later parts: only one that still
        exists is applied. One that is gone although no request can have applied it is damage.
        """
        while self._unapplied:
            key, part = self._unapplied[0]
            self._send([*part, Delete(key)], part=key)
            self._unsure.discard(key)
            del self._unapplied[0]

    def _send(self, writes: Part, *, part: bytes | None = None) -> bool:
        """Write these in one transaction upon the last commit; raises `StoreError`, `EtcdError`.

        Returns False where it was not applied because the commit that had no answer is the last one, or
        because the part under this key was applied already.
        """
        outcome = self._transact(writes, part)
        if outcome.succeeded:
            self._revision = outcome.revision
            return True
        there, last = (outcome.found.get(key) for key in (self._lease.key, self._key("commit")))
        if there is None or there.create_revision != self._lease.created_at:
            self._lease.lost = True
            raise StoreError(
                f"{self} cannot be written: etcd has ended this registry's lease; it asks for another one"
            )
        if self._open is not None and last is not None and last.value == self._open.value:
            return False
        if part is not None and last is not None and last.value == self._last:
            if part not in self._unsure:
                raise self._damaged(ValueError(f"{part.decode()}, a part of the last commit, is missing"))
            return False
        self._superseded = True
        self._release()
        raise self._superseded_error()

    def _transact(self, writes: Part, part: bytes | None) -> Outcome:
        """Send a transaction, and send it again until it has an answer; raises `StoreError`, `EtcdError`."""
        leader, commit = self._lease.key, self._key("commit")
        exists = () if part is None else (Exists(part),)
        deadline = time.monotonic() + _SEND_SECONDS
        while self._lease.valid:
            compares = (self._lease.fence, IsValue(commit, self._last), *exists)
            try:
                return self._client.transact(compares, writes, [Get(leader), Get(commit)])
            except (OutcomeUnknownError, UnreachableError) as error:
                self._leave_open(error, part)
                if time.monotonic() >= deadline:
                    raise
            except RefusedError as error:
                self._leave_open(error, part)
                raise
            time.sleep(_PAUSE_SECONDS)
        raise StoreError(
            f"{self} cannot be written: this registry's lease was not renewed in time; it goes on by itself "
            "once etcd answers again"
        )

    def _leave_open(self, error: EtcdError, part: bytes | None) -> None:
        """Note what may be stored; a member whose quota is reached says so and stores it."""
        is_full = isinstance(error, RefusedError) and error.is_full
        if is_full or isinstance(error, OutcomeUnknownError):
            if self._open is not None:
                self._open.unanswered = True
            if part is not None:
                self._unsure.add(part)

    def _compact_now_and_then(self) -> None:
        """Let etcd delete what was replaced a while ago: its database would grow until its quota.

        The commit that is stored does not wait for it.
        """
        now = time.monotonic()
        if now >= self._compact_at:
            before, self._compact_to = self._compact_to, self._revision
            self._compact_at = now + _COMPACT_SECONDS
            if before:
                threading.Thread(
                    target=self._compact, args=(before,), name="etcd-compaction", daemon=True
                ).start()

    def _compact(self, revision: int) -> None:
        with suppress(EtcdError):  # it is done at the next time
            self._client.compact(revision)

    def _plan(self, batches: Sequence[Batch], index: EventIndex) -> tuple[list[Write], EventPlan]:
        """Say what a commit of these writes; raises `UnstorableError`."""
        plan = EventPlan(index, next((one.id for batch in batches for one in batch.events), None))
        documents: dict[bytes, str | None] = {}
        for batch in batches:
            for change in batch.changes:
                text = document_text(change)
                if change.kind is DocumentKind.NODE:
                    if text is None:
                        plan.delete_node(change.key)
                    else:
                        text = _node_text(plan.store_node(change.key), text)
                documents[self._key("doc", change.kind.value, change.key)] = text
            for event in batch.events:
                plan.add(event)
        writes: list[Write] = [
            Delete(key) if text is None else Put(key, text.encode()) for key, text in documents.items()
        ]
        read = partial(self._client.read, deadline=time.monotonic() + TRY_SECONDS)
        writes += plan.writes(self._event_key, read)
        return writes, plan

    # What is stored

    def _puts(self, loaded: Loaded) -> Iterator[Put]:
        """Store all of it where nothing is."""
        events = {one.id or 0: one for history in loaded.histories.values() for one in history}
        events |= {one.id or 0: one for one in loaded.recent}
        newest = max(events, default=0)
        for change in loaded.changes:
            text = document_text(change) or ""
            if change.kind is DocumentKind.NODE:
                history = loaded.histories.get(change.key)
                text = _node_text((history[0].id or 0) - 1 if history else newest, text)
            yield Put(self._key("doc", change.kind.value, change.key), text.encode())
        for number, value in enumerate(event_values(events[one] for one in sorted(events))):
            yield Put(self._event_key(number), value)

    def _read(self) -> tuple[EventIndex, Loaded]:
        """Read all that is stored, as of one moment; raises `UnusableError`, `EtcdError`."""
        try:
            rows = self._rows()
        except RefusedError as error:
            if error.code != _COMPACTED:
                raise
            rows = self._rows()
        return self._parsed(rows)

    def _rows(self) -> dict[bytes, bytes]:
        return {one.key: one.value for one in self._client.read(*self._range())}

    def _parsed(
        self, rows: dict[bytes, bytes], parsed: Mapping[bytes, ParsedValue] = MappingProxyType({})
    ) -> tuple[EventIndex, Loaded]:
        """Parse all keys and values; raises `UnusableError`."""
        try:
            return self._parse(self._applied(rows), parsed)
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(error) from error

    def _applied(self, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Do what parts of the last commit say that are not applied yet."""
        commit = rows.get(self._key("commit"))
        if commit is not None:
            start, end = self._range("redo", str(json.loads(commit)["token"]))
            for value in [value for key, value in rows.items() if start <= key < end]:
                apply_part(decode_part(value), rows)
        return rows

    def _parse(
        self, rows: dict[bytes, bytes], parsed: Mapping[bytes, ParsedValue]
    ) -> tuple[EventIndex, Loaded]:
        index, changes = EventIndex(), []
        start = self._range("doc")[0]
        for key, value in rows.items():
            if key.startswith(start):
                kind, _, name = key[len(start) :].decode().partition("/")
                if kind in _KINDS:
                    of, document = parsed.get(key, (b"", {}))
                    if of != value:
                        document = parse_text(value.decode())
                    if kind == DocumentKind.NODE:
                        index.histories[name] = History(int(document[_AFTER]))
                        document = document[NODE_DOCUMENT]
                    changes.append(Change(DocumentKind(kind), name, document))
        recent: list[RegistryEvent] = []
        histories: dict[str, list[RegistryEvent]] = {}
        reader, start = EventReader(), self._range("events")[0]
        for key in sorted(key for key in rows if key.startswith(start)):
            events = reader.read(rows[key])
            index.add(key, len(rows[key]), events)
            recent += events
        for event in recent:
            history = index.histories.get(event.node_id or "")
            if history is not None and history.ids and (event.id or 0) >= history.ids[0]:
                histories.setdefault(event.node_id or "", []).append(event)
        oldest = index.newest - RECENT_EVENTS
        return index, Loaded(changes, [one for one in recent if (one.id or 0) > oldest], histories)

    def _key(self, *names: str) -> bytes:
        return "/".join((self._prefix, *names)).encode()

    def _range(self, *names: str) -> tuple[bytes, bytes]:
        """Return the first key below a name, and what follows the last one."""
        key = self._key(*names)
        return key + b"/", key + b"0"

    def _event_key(self, number: int) -> bytes:
        return self._key("events", f"{self._number + 1:016x}{number:04x}")

    # Errors

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self} is closed; start the registry again to open it")

    def _superseded_error(self) -> StoreError:
        return StoreError(
            f"another registry has written to {self} since this one lost its lease: nothing more can be "
            "stored until this registry is started again"
        )

    def _damaged(self, error: Exception) -> UnusableError:
        return UnusableError(
            f"{self} cannot be used: it is damaged ({error}); nothing was changed there: put back a "
            "backup with `gpu-agent registry restore FILE --force`"
        )

    def _error(self, error: EtcdError | StoreError) -> StoreError:
        return store_error(error, self._client, self._prefix)


def check_cluster(client: EtcdClient) -> None:
    """Raise `UnusableError` where the members are not those of one cluster."""
    apart = [endpoint_text(one) for one in client.clusters().values()]
    if len(apart) > 1:
        raise UnusableError(
            f"etcd's members {' and '.join(apart)} are clusters of their own, and each would store another "
            "registry: join them to one cluster, see *A registry on three machines* in the documentation"
        )


def store_error(error: EtcdError | StoreError, client: EtcdClient, prefix: str) -> StoreError:
    """Say what is wrong with the etcd of this client, and the next step."""
    place = _place(client, prefix)
    match error:
        case LeaseHeldError():
            return StoreError(
                f"the registry's database {place} is in use by {error}: only one registry may use it; "
                "stop that one, with all its instances, or name another prefix"
            )
        case StoreError():
            return error
        case RefusedError(is_full=True):
            problem = f"the disk is full ({error})"
            fix = (
                "free some space: `etcdctl defrag --cluster`, then `etcdctl alarm disarm`; the registry "
                "goes on by itself"
            )
        case RefusedError(is_denied=True):
            problem = f"etcd refuses this registry ({error})"
            fix = (
                "check etcd_user and etcd_password_file, and that the user's role may read and write the "
                f"keys that begin with {prefix}/"
            )
        case RefusedError():
            problem, fix = f"etcd refused it: {error}", "read etcd's log"
        case OutcomeUnknownError():
            problem, fix = f"etcd has not answered ({error})", "see `etcdctl endpoint health --cluster`"
        case _:
            problem, fix = (
                f"no member of etcd is reached ({error})",
                "check that etcd runs there, and that this machine reaches it",
            )
    return StoreError(f"the registry's database {place} cannot be used: {problem}; {fix}")


def _place(client: EtcdClient, prefix: str) -> str:
    return f"etcd://{client}/{prefix}"


def _reads(instance: bytes) -> int:
    """Return the newest version that an instance can read, by the value of its key."""
    try:
        return int(json.loads(instance)[READS_VERSION])
    except (ValueError, TypeError, KeyError):
        return 1


def _node_text(after: int, document: str) -> str:
    return f'{{"{_AFTER}":{after},"{NODE_DOCUMENT}":{document}}}'
