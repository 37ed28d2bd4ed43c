"""Clients on all API addresses: each request is recorded with its times and with what its answer says."""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from tests.histories.linearizability import NEVER
from tests.histories.nodes import World
from tests.histories.record import OPEN, History, JobKind, Kind, Outcome, Recorded, Run, Shown

Address = tuple[str, int]

LONG_TTL_SECONDS = 3600
SLOWER = 1.02
"""Each pause is so much longer than the one before: a long history stays one that can be searched."""
UNSERVED_PAUSE_SECONDS = 0.1
"""Before the next request where one was not served."""
_NO_CLAIM = ("CLAIM_NOT_FOUND", "NO_AVAILABLE_NODE")


class NotSentError(Exception):
    """The request never left: no one listens there."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    body: object | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    document: dict[str, Any]


class Api:
    """One caller's connections to the API addresses."""

    def __init__(self, *, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._connections: dict[Address, http.client.HTTPConnection] = {}

    def ask(self, address: Address, request: Request) -> Answer:
        """Send one request, once; raises `NotSentError`, or `OSError` and others without a whole answer."""
        connection = self._connections.get(address)
        if connection is None:
            connection = http.client.HTTPConnection(*address, timeout=self._timeout_seconds)
            try:
                connection.connect()
            except OSError as error:
                raise NotSentError(str(error)) from error
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[address] = connection
        try:
            written = None if request.body is None else json.dumps(request.body)
            connection.request(request.method, request.path, written, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, json.loads(content) if content else {})
        except BaseException:
            self._connections.pop(address).close()
            raise

    def close(self) -> None:
        for one in self._connections.values():
            one.close()
        self._connections.clear()


@dataclass(slots=True)
class Caller:
    """Sends the requests of one client and records them."""

    name: str
    history: History
    addresses: Sequence[Address]
    dice: random.Random
    timeout_seconds: float
    api: Api = field(init=False)

    def __post_init__(self) -> None:
        self.api = Api(timeout_seconds=self.timeout_seconds)

    def claim(self, job: str, kind: JobKind) -> Recorded | None:
        return self._record(Kind.CLAIM, Request("POST", "/v1/claims", demands(job, kind)), job=job)

    def renew(self, job: str, claim: str) -> Recorded | None:
        request = Request("POST", f"/v1/claims/{job}/renew", {"claim_id": claim})
        return self._record(Kind.RENEW, request, job=job, named=claim)

    def release(self, job: str, claim: str | None) -> Recorded | None:
        query = "" if claim is None else f"?claim_id={claim}"
        return self._record(Kind.RELEASE, Request("DELETE", f"/v1/claims/{job}{query}"), job=job, named=claim)

    def show(self, job: str, address: Address | None = None) -> Recorded | None:
        return self._record(Kind.READ, Request("GET", f"/v1/claims/{job}"), job=job, address=address)

    def list(self, address: Address | None = None) -> Recorded | None:
        return self._record(Kind.LIST, Request("GET", "/v1/claims"), address=address)

    def _record(
        self,
        kind: Kind,
        request: Request,
        *,
        job: str = "",
        named: str | None = None,
        address: Address | None = None,
    ) -> Recorded | None:
        """Send a request and record it; None where it was not sent, or can have no effect."""
        address = address or self.dice.choice(self.addresses)
        outcome, shown, detail = Outcome.UNKNOWN, tuple[Shown, ...](), ""
        invoked = time.monotonic()
        try:
            answer = self.api.ask(address, request)
        except NotSentError:
            return None
        except (OSError, http.client.HTTPException, ValueError) as error:
            detail, returned = type(error).__name__, NEVER
        else:
            returned = time.monotonic()
            outcome, shown = _meaning(kind, answer)
            detail = f"{answer.status} {answer.document.get('code', '')}".strip()
            if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                return None
        recorded = Recorded(
            invoked=invoked - self.history.began,
            returned=NEVER if outcome in OPEN else returned - self.history.began,
            client=self.name,
            kind=kind,
            job=job,
            named=named,
            outcome=outcome,
            shown=shown,
            detail=f"{detail} from {address[1]}",
        )
        self.history.add(recorded)
        return recorded


def demands(job: str, kind: JobKind) -> dict[str, object]:
    return {
        "job_id": job,
        "nodes": kind.nodes,
        **({"gpu_count": kind.gpus} if kind.gpus else {}),
        **({"gpu_sharing": "memory", "min_gpu_memory_mb": kind.memory_mb} if kind.memory_mb else {}),
        **({} if kind.expires else {"ttl_seconds": LONG_TTL_SECONDS}),
        **({"wait_seconds": kind.wait_seconds} if kind.wait_seconds else {}),
    }


def shown_in(document: dict[str, Any]) -> Shown:
    return Shown(
        document["job_id"],
        document["claim_id"],
        tuple(sorted((one["node_id"], tuple(sorted(one["gpu_uuids"]))) for one in document["nodes"])),
    )


def _meaning(kind: Kind, answer: Answer) -> tuple[Outcome, tuple[Shown, ...]]:
    """Read what an answer says about the job; `UNKNOWN` where the request may still take effect."""
    document, code = answer.document, answer.document.get("code")
    match answer.status:
        case HTTPStatus.OK if kind is Kind.LIST:
            return Outcome.SHOWN, tuple(shown_in(one) for one in document["claims"])
        case HTTPStatus.OK if document["state"] == "active":
            return Outcome.SHOWN, (shown_in(document),)
        case HTTPStatus.OK if kind is Kind.READ:
            return Outcome.NONE, ()
        case HTTPStatus.NO_CONTENT:
            return Outcome.RELEASED, ()
        case HTTPStatus.NOT_FOUND | HTTPStatus.CONFLICT if code in _NO_CLAIM:
            return Outcome.NONE, ()
        case HTTPStatus.CONFLICT if code == "CLAIM_SUPERSEDED":
            return Outcome.OTHER, ()
        case HTTPStatus.BAD_GATEWAY | HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.GATEWAY_TIMEOUT:
            return Outcome.UNKNOWN, ()
    return Outcome.UNEXPECTED, ()


class Client(threading.Thread):
    """A scheduler that shares its jobs with others, until `stop`."""

    def __init__(self, caller: Caller, world: World, *, pause_seconds: float, reads: float) -> None:
        """`reads`: which share of its requests changes nothing."""
        super().__init__(name=caller.name, daemon=True)
        self._caller, self._world, self._pause_seconds, self._reads = caller, world, pause_seconds, reads
        self._dice = caller.dice
        self._jobs = list(caller.history.jobs)
        self._known: dict[str, list[str]] = {job: [] for job in self._jobs}
        """Claims that this client was granted or saw, the newest last."""
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        pause_seconds = self._pause_seconds
        while not self._stopped.is_set():
            done = self._one()
            is_served = done is not None and done.outcome is not Outcome.UNKNOWN
            self._stopped.wait(
                self._dice.uniform(0, 2 * pause_seconds) if is_served else UNSERVED_PAUSE_SECONDS
            )
            pause_seconds *= SLOWER
        self._caller.api.close()

    def _one(self) -> Recorded | None:
        job = self._dice.choice(self._jobs)
        known = self._known[job]
        draw = self._dice.random()
        if self._dice.random() < self._reads:
            return self._learn(self._caller.list() if draw < 0.4 else self._caller.show(job))
        if not known or draw < 0.4:
            return self._learn(self._claim(job))
        claim = known[-1] if self._dice.random() < 0.85 else self._dice.choice(known)
        if draw < 0.6:
            return self._learn(self._caller.renew(job, claim))
        return self._caller.release(job, claim if self._dice.random() < 0.85 else None)

    def _claim(self, job: str) -> Recorded | None:
        kind = self._caller.history.jobs[job]
        done = self._caller.claim(job, kind)
        if done is not None and done.shown and kind.expires:
            now = time.monotonic()
            until = now + self._dice.uniform(0.2, 2.5) * kind.ttl_seconds
            self._world.run(done.shown[0], until=until)
            history = self._caller.history
            history.add_run(Run(done.shown[0].claim, now - history.began, until - history.began))
        return done

    def _learn(self, done: Recorded | None) -> Recorded | None:
        for one in () if done is None else done.shown:
            known = self._known.get(one.job)
            if known is not None and one.claim not in known:
                known.append(one.claim)
        return done
