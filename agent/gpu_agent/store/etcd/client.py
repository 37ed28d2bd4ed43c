"""The calls of etcd v3 that a store needs, over the JSON gateway that each member serves (etcd 3.4 or newer).

Every call has a deadline. Members are tried in turn, one that failed last of all. What is certain after a
failure, its exception says: `UnreachableError` and `RefusedError` changed nothing; after an
`OutcomeUnknownError` the call may have been applied, may be applied later, or never. Any thread may call.

JSON over HTTP needs no library. gRPC stores a third more in groups of 64 documents, and a registry stores far
less than either.
"""

import json
import socket
import ssl
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

TRY_SECONDS = 1.5
"""How long one member may take for one call."""
CALL_SECONDS = 5.0
"""How long a call that may be repeated goes on, over all members."""
_CONNECT_SECONDS = 1.0
_BODY_SECONDS = 30.0
"""How long an answer that has begun may pause."""
_PAUSE_SECONDS = 0.05
"""Between two rounds over all members."""
_FIRST_PAGE, _MOST_IN_PAGE = 16, 250
"""Keys in one answer to a range."""
_PAGE_BYTES = 4 << 20
"""Of the values in one answer, as far as those before let expect; a member needs time to write it."""
_WATCH_OPTIONS = {
    "TCP_KEEPIDLE": 1,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 3000,
}
"""A watch notices within 3 s, before a leader's lease ends, that its member's machine is gone."""

_RESOURCE_EXHAUSTED, _UNAUTHENTICATED, _OUT_OF_RANGE = 8, 16, 11
_UNDECIDED = frozenset({1, 2, 4, 10, 13, 14})
"""Codes of gRPC that leave open whether the call was applied: cancelled, unknown, deadline exceeded, aborted,
internal, unavailable."""
_NO_SPACE = "database space exceeded"
_OLD_AUTH, _NO_TOKEN = "revision of auth store is old", "invalid auth token"

Endpoint = tuple[str, int]
"""Host and port of a member."""


class EtcdError(Exception):
    """A call failed; its text is what the network or etcd said."""


class UnreachableError(EtcdError):
    """No member received the call."""


class OutcomeUnknownError(EtcdError):
    """The call was sent and has no answer."""


class RefusedError(EtcdError):
    """Etcd refused the call and changed nothing."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_full(self) -> bool:
        """Whether etcd's database has reached its quota: the alarm `NOSPACE`."""
        return _NO_SPACE in str(self)

    @property
    def is_denied(self) -> bool:
        """Whether user, password or role are at fault."""
        text = str(self)
        return self.code in {7, _UNAUTHENTICATED} or "authentication" in text or "user name" in text


@dataclass(frozen=True, slots=True)
class Access:
    """How the members are reached."""

    endpoints: tuple[Endpoint, ...]
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns the context of the next connection; None without TLS."""
    user: str | None = None
    password_file: Path | None = None
    """Read at each authentication; required with a user."""


class KeyValue(NamedTuple):
    """A key as it is stored."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Watched(NamedTuple):
    """A change of a key."""

    key: bytes
    value: bytes | None
    """None where it was deleted."""
    revision: int
    created_at: int
    """The revision that created the key."""


@dataclass(frozen=True, slots=True)
class Put:
    """Store a value under a key; with a lease, for as long as that lives."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or with an end all keys from `key` to before `end`."""

    key: bytes
    end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key."""

    key: bytes


Operation = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class IsValue:
    """True where a key holds exactly this; None: where it does not exist."""

    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class IsCreatedAt:
    """True where the key that is there was created by this revision."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Exists:
    """True where a key exists."""

    key: bytes


Compare = IsValue | IsCreatedAt | Exists


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did."""

    succeeded: bool
    revision: int
    found: Mapping[bytes, KeyValue] = field(default_factory=dict)
    """What the `Get` of the branch that was carried out have found."""


class _Request(NamedTuple):
    path: str
    body: bytes
    deadline: float
    """By the monotonic clock."""


_T = TypeVar("_T")
_Send = Callable[[Endpoint, _Request, str | None], _T]


class EtcdClient:
    """Talks to the members of one cluster; connections stay open until `close`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._order = list(access.endpoints)
        self._idle: dict[Endpoint, list[socket.socket]] = {one: [] for one in access.endpoints}
        self._token: str | None = None
        self._watches: dict[socket.socket, Endpoint] = {}
        self._lock = threading.Lock()
        """For the four above."""
        self._closed = False

    def __str__(self) -> str:
        return ",".join(endpoint_text(one) for one in self._access.endpoints)

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        seconds: float = TRY_SECONDS,
    ) -> Outcome:
        """Carry out `then` where all compares are true, else `otherwise`, at once; raises `EtcdError`."""
        answer = self._call(
            "/v3/kv/txn",
            {
                "compare": [_compare(one) for one in compares],
                "success": [_operation(one) for one in then],
                "failure": [_operation(one) for one in otherwise],
            },
            seconds=seconds,
            repeatable=False,
        )
        found = (
            _key_value(row)
            for response in answer.get("responses", ())
            for row in response.get("response_range", {}).get("kvs", ())
        )
        return Outcome(answer.get("succeeded", False), _revision(answer), {one.key: one for one in found})

    def get(self, key: bytes) -> KeyValue | None:
        """Read one key as of now; raises `EtcdError`."""
        rows = self._call("/v3/kv/range", {"key": _text(key)}).get("kvs", ())
        return _key_value(rows[0]) if rows else None

    def revision(self, key: bytes) -> int:
        """Return the newest revision of the whole cluster; raises `EtcdError`."""
        return _revision(self._call("/v3/kv/range", {"key": _text(key), "count_only": True}))

    def read(
        self, start: bytes, end: bytes, *, revision: int = 0, deadline: float | None = None
    ) -> Iterator[KeyValue]:
        """Read the keys from `start` to before `end`, all as of one moment; raises `EtcdError`.

        The moment is a revision, or the first page's where none is named. Without a deadline, which is one
        for all pages, each page has `CALL_SECONDS`.
        """
        limit, more = _FIRST_PAGE, True
        while more:
            asked = {"key": _text(start), "range_end": _text(end), "limit": limit, "revision": revision}
            try:
                seconds = None if deadline is None else deadline - time.monotonic()
                answer = self._call("/v3/kv/range", asked, seconds=seconds)
            except (OutcomeUnknownError, RefusedError) as error:
                too_large = isinstance(error, OutcomeUnknownError) or error.code == _RESOURCE_EXHAUSTED
                if limit == 1 or not too_large or (deadline is not None and time.monotonic() >= deadline):
                    raise
                limit = max(1, limit // 8)
                continue
            revision = revision or _revision(answer)
            rows = [_key_value(row) for row in answer.get("kvs", ())]
            yield from rows
            more = bool(answer.get("more"))
            if rows:
                start = rows[-1].key + b"\0"
                size = sum(len(one.value) for one in rows) // len(rows) + 1
                limit = max(1, min(_PAGE_BYTES // size, 2 * limit, _MOST_IN_PAGE))

    def watch(
        self, start: bytes, end: bytes, *, revision: int, idle_seconds: float
    ) -> Generator[Sequence[Watched], None, None]:
        """Yield what changes from `start` to before `end`, from a revision on, in order.

        A transaction is yielded whole, alone or with those after it.
        Ends with `EtcdError`, also after a time without changes: go on with the revision after the last one.
        `RefusedError` says that this one is compacted: read all again.
        """
        wanted = {"key": _text(start), "range_end": _text(end), "start_revision": revision}
        body = json.dumps({"create_request": wanted}).encode()
        request = _Request("/v3/watch", body, time.monotonic() + CALL_SECONDS)
        endpoint, connection, response = self._in_turn(request, self._stream)
        with connection, response, self._ended_with(endpoint, connection):
            while True:
                connection.settimeout(idle_seconds)
                try:
                    answer = json.loads(response.readline())
                except (OSError, HTTPException, ValueError) as error:
                    raise UnreachableError(f"the watch has ended ({_network_words(error)})") from error
                result = _answer(response.status, answer).get("result", {})
                _refuse_canceled(result)
                if result.get("events"):
                    yield [_watched(one) for one in result["events"]]

    def end_watches(self) -> None:
        """End each watch with `EtcdError`; the next one begins at another member."""
        with self._lock:
            endpoints = set(self._watches.values())
        for endpoint in endpoints:
            self._try_last(endpoint)

    @contextmanager
    def _ended_with(self, endpoint: Endpoint, connection: socket.socket) -> Iterator[None]:
        """End a watch with its member, also where that is gone without a word."""
        for name, value in _WATCH_OPTIONS.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            self._watches[connection] = endpoint
        try:
            yield
        finally:
            with self._lock:
                del self._watches[connection]

    def clusters(self) -> dict[str, Endpoint]:
        """Ask each member that answers to which cluster it belongs; returns one member of each."""
        found: dict[str, Endpoint] = {}
        for endpoint in self._access.endpoints:
            request = _Request("/v3/maintenance/status", b"{}", time.monotonic() + TRY_SECONDS)
            with suppress(EtcdError):
                answer = self._authenticated(endpoint, request, self._post)
                found.setdefault(str(answer["header"]["cluster_id"]), endpoint)
        return found

    def grant(self, seconds: int) -> tuple[int, float]:
        """Make a lease; returns its id and how long it lives, which may be longer. Raises `EtcdError`."""
        answer = self._call("/v3/lease/grant", {"TTL": seconds})
        return int(answer["ID"]), float(answer["TTL"])

    def keep_alive(self, lease: int, *, seconds: float) -> float:
        """Renew a lease; returns how long it lives from now on, 0 where it has ended. Raises `EtcdError`."""
        answer = self._call("/v3/lease/keepalive", {"ID": lease}, seconds=seconds)
        return float(answer.get("result", {}).get("TTL", 0))

    def revoke(self, lease: int, *, seconds: float) -> None:
        """End a lease and delete its keys; raises `EtcdError`."""
        self._call("/v3/lease/revoke", {"ID": lease}, seconds=seconds)

    def compact(self, revision: int) -> None:
        """Delete what was replaced before a revision: etcd stores every value that a key ever had."""
        try:
            self._call("/v3/kv/compaction", {"revision": revision})
        except RefusedError as error:
            if error.code != _OUT_OF_RANGE:  # it is compacted already
                raise

    def close(self) -> None:
        """Close the connections; a call that runs closes its own."""
        with self._lock:
            self._closed = True
            connections = [one for idle in self._idle.values() for one in idle]
            for idle in self._idle.values():
                idle.clear()
        for one in connections:
            one.close()

    # One call

    def _call(
        self,
        path: str,
        asked: Mapping[str, object],
        *,
        seconds: float | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """Ask the members in turn until one answers, for so long, or `CALL_SECONDS`; raises `EtcdError`.

        A call that may not be repeated goes to the next one only where it was not sent to the one before.
        """
        deadline = time.monotonic() + (CALL_SECONDS if seconds is None else seconds)
        request = _Request(path, json.dumps(asked).encode(), deadline)
        return self._in_turn(request, self._post, repeatable=repeatable)

    def _in_turn(self, request: _Request, send: _Send[_T], *, repeatable: bool = True) -> _T:
        while True:
            problems: list[str] = []
            unknown = False
            for endpoint in tuple(self._order):
                try:
                    return self._authenticated(endpoint, request, send)
                except (UnreachableError, OutcomeUnknownError) as error:
                    problems.append(f"{endpoint_text(endpoint)}: {error}")
                    unknown |= isinstance(error, OutcomeUnknownError)
                self._try_last(endpoint)
                if (unknown and not repeatable) or time.monotonic() >= request.deadline:
                    break
            if (unknown and not repeatable) or time.monotonic() + _PAUSE_SECONDS >= request.deadline:
                raise (OutcomeUnknownError if unknown else UnreachableError)("; ".join(problems))
            time.sleep(_PAUSE_SECONDS)

    def _authenticated(self, endpoint: Endpoint, request: _Request, send: _Send[_T]) -> _T:
        token = self._token
        if self._access.user is not None and token is None:
            token = self._authenticate(endpoint, request.deadline)
        try:
            return send(endpoint, request, token)
        except RefusedError as error:
            stale = error.code == _UNAUTHENTICATED or _OLD_AUTH in str(error)
            if token is None or not stale:
                raise
        return send(endpoint, request, self._authenticate(endpoint, request.deadline))

    def _authenticate(self, endpoint: Endpoint, deadline: float) -> str:
        """Show user and password for a token; raises `EtcdError`."""
        path = self._access.password_file
        try:
            password = "" if path is None else path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnreachableError(f"the password file {path} cannot be read ({error})") from error
        body = json.dumps({"name": self._access.user, "password": password}).encode()
        try:
            answer = self._post(endpoint, _Request("/v3/auth/authenticate", body, deadline), None)
        except OutcomeUnknownError as error:  # what the token is for was not sent
            raise UnreachableError(str(error)) from error
        self._token = str(answer["token"])
        return self._token

    def _post(self, endpoint: Endpoint, request: _Request, token: str | None) -> dict[str, Any]:
        """Send one request to one member and read its answer; raises `EtcdError`."""
        connection = self._connection(endpoint, request.deadline)
        usable = False
        try:
            with _response(connection, endpoint, request, token=token) as response:
                _limit(connection, time.monotonic() + _BODY_SECONDS)  # the rest is on its way
                answer = json.loads(response.read())
                usable = not response.will_close
        except (OSError, HTTPException, ValueError) as error:
            raise OutcomeUnknownError(_network_words(error)) from error
        finally:
            self._put_back(endpoint, connection, usable=usable)
        return _answer(response.status, answer)

    def _stream(
        self, endpoint: Endpoint, request: _Request, token: str | None
    ) -> tuple[Endpoint, socket.socket, HTTPResponse]:
        """Send one request to one member, and read the first line of its answer; raises `EtcdError`."""
        connection = self._connection(endpoint, request.deadline)
        with ExitStack() as on_error:
            on_error.callback(connection.close)
            try:
                response = on_error.enter_context(_response(connection, endpoint, request, token=token))
                first = _answer(response.status, json.loads(response.readline()))
            except (OSError, HTTPException, ValueError) as error:
                raise OutcomeUnknownError(_network_words(error)) from error
            _refuse_canceled(first.get("result", {}))
            on_error.pop_all()
        return endpoint, connection, response

    def _connection(self, endpoint: Endpoint, deadline: float) -> socket.socket:
        with self._lock:
            if self._closed:
                raise UnreachableError("the client is closed")
            if self._idle[endpoint]:
                return self._idle[endpoint].pop()
        seconds = max(0.01, min(_CONNECT_SECONDS, deadline - time.monotonic()))
        tls = None if self._access.tls is None else self._access.tls()
        try:
            plain = socket.create_connection(endpoint, timeout=seconds)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return plain if tls is None else tls.wrap_socket(plain, server_hostname=endpoint[0])
            except OSError:
                plain.close()
                raise
        except OSError as error:
            raise UnreachableError(_network_words(error)) from error

    def _put_back(self, endpoint: Endpoint, connection: socket.socket, *, usable: bool) -> None:
        with self._lock:
            if usable and not self._closed:
                self._idle[endpoint].append(connection)
                return
        connection.close()

    def _try_last(self, endpoint: Endpoint) -> None:
        """Put a member that failed behind the others; end its watches, and idle connections as old."""
        with self._lock:
            self._order.remove(endpoint)
            self._order.append(endpoint)
            idle, self._idle[endpoint] = self._idle[endpoint], []
            for connection, watched in self._watches.items():
                if watched == endpoint:
                    with suppress(OSError):  # with TLS too, for its reader to end
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for one in idle:
            one.close()


def _response(
    connection: socket.socket, endpoint: Endpoint, request: _Request, *, token: str | None
) -> HTTPResponse:
    """Send a request and read the head of its answer; raises `OSError`, `HTTPException`."""
    ends = min(request.deadline, time.monotonic() + TRY_SECONDS)
    head = [
        f"POST {request.path} HTTP/1.1",
        f"Host: {endpoint_text(endpoint)}",
        "Content-Type: application/json",
        f"Content-Length: {len(request.body)}",
        "Grpc-Metadata-Hasleader: true",  # a member that is cut off from the others ends a watch
        *([] if token is None else [f"Authorization: {token}"]),
        *("", ""),
    ]
    _limit(connection, ends)
    connection.sendall("\r\n".join(head).encode() + request.body)  # at once; `HTTPConnection` sends twice
    _limit(connection, ends)
    response = HTTPResponse(connection, method="POST")
    response.begin()
    return response


def endpoint_text(endpoint: Endpoint) -> str:
    """Write a member's address as `host:port`."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _limit(connection: socket.socket, deadline: float) -> None:
    connection.settimeout(max(0.001, deadline - time.monotonic()))


def _answer(status: int, answer: object) -> dict[str, Any]:
    """Return what a member answered, or raise what it refused."""
    if not isinstance(answer, dict):
        raise OutcomeUnknownError(f"the answer is none of etcd's (HTTP {status})")
    error = answer.get("error")
    if status == 200 and error is None:  # noqa: PLR2004 - HTTP's own number
        return answer
    inner: Mapping[str, Any] = error if isinstance(error, dict) else answer
    code = inner.get("code", inner.get("grpc_code"))
    message = str(inner.get("message") or error or f"the answer is none of etcd's (HTTP {status})")
    if not isinstance(code, int) or code in _UNDECIDED:
        raise OutcomeUnknownError(message)
    raise RefusedError(message, code)


def _refuse_canceled(result: Mapping[str, Any]) -> None:
    """Raise `RefusedError` where etcd has ended a watch."""
    if result.get("canceled"):
        reason = str(result.get("cancel_reason") or "compacted")
        raise RefusedError(reason, _UNAUTHENTICATED if _NO_TOKEN in reason else _OUT_OF_RANGE)


def _network_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message}): see etcd_ca_file"
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason or error).replace("_", " ").lower()
        setting = "etcd_cert_file" if "alert" in reason else "etcd_ca_file, and whether it speaks TLS"
        return f"no encrypted connection comes about ({reason}): see {setting}"
    if isinstance(error, RemoteDisconnected):
        return "it ended the connection without an answer; if it speaks TLS, see etcd_ca_file"
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _compare(one: Compare) -> dict[str, object]:
    if isinstance(one, Exists):
        return {"key": _text(one.key), "target": "CREATE", "result": "GREATER", "createRevision": 0}
    compare: dict[str, object] = {"key": _text(one.key), "result": "EQUAL"}
    if isinstance(one, IsCreatedAt):
        return compare | {"target": "CREATE", "createRevision": one.revision}
    if one.value is None:
        return compare | {"target": "CREATE", "createRevision": 0}
    return compare | {"target": "VALUE", "value": _text(one.value)}


def _operation(one: Operation) -> dict[str, object]:
    match one:
        case Put(key, value, lease):
            return {"requestPut": {"key": _text(key), "value": _text(value), "lease": lease}}
        case Delete(key, end):
            return {"requestDeleteRange": {"key": _text(key)} | ({"range_end": _text(end)} if end else {})}
        case Get(key):
            return {"requestRange": {"key": _text(key)}}


def _key_value(row: Mapping[str, str]) -> KeyValue:
    return KeyValue(
        b64decode(row["key"]),
        b64decode(row.get("value", "")),
        int(row["create_revision"]),
        int(row["mod_revision"]),
        int(row.get("lease", 0)),
    )


def _watched(event: Mapping[str, Any]) -> Watched:
    changed = event["kv"]
    value = None if event.get("type") == "DELETE" else b64decode(changed.get("value", ""))
    created_at = int(changed.get("create_revision", 0))
    return Watched(b64decode(changed["key"]), value, int(changed["mod_revision"]), created_at)


def _revision(answer: Mapping[str, Any]) -> int:
    return int(answer["header"]["revision"])
