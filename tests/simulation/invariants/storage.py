"""Nothing is sent before it is stored; the store holds what was committed; an outage decides nothing.

The stored documents of each node are remembered until a newer one has been sent to it. Whatever is sent must
be in one of those, and never be older than what was sent before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_agent.registry.actions import (
    Answer,
    DocumentKind,
    Effect,
    LogEvent,
    Output,
    Refusal,
    Send,
    SendStatus,
)
from gpu_agent.registry.events import (
    ClaimRequested,
    CordonRequested,
    DrainRequested,
    Event,
    JoinTokenRequested,
    OperatorRequest,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    StoreFailed,
    StoreRecovered,
)
from gpu_agent.registry.job import Claim
from gpu_agent.server.effects import Executable, PublishEvent
from gpu_agent.store.base import Batch, Loaded
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold

Document = Mapping[str, Any]
Matches = Callable[[Document | None], bool]
Asked = (
    DrainRequested
    | ResumeRequested
    | CordonRequested
    | RemovalRequested
    | ClaimRequested
    | RenewalRequested
    | ReleaseRequested
)


@dataclass(slots=True)
class _Versions:
    """The stored documents of one thing since the one that was last sent; None where it was deleted."""

    documents: list[Document | None]

    def advance(self, matches: Sequence[bool]) -> bool:
        """Drop the documents before the first that matches; False when none does."""
        if True not in matches:
            return False
        del self.documents[: matches.index(True)]
        return True


class StoreFirstInvariants(Observer):
    """Holds what is sent to what is stored."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, _Versions] = {}
        self._claims: dict[str, _Versions] = {}
        self._open: dict[int, Asked] = {}
        self._paths: dict[int, dict[str, list[Document]]] = {}
        """By output: the statuses that its step gave each node, one after the other."""
        self._farewells: dict[int, dict[str, list[Document]]] = {}
        """By output: the statuses that are sent to each node once it is stored."""

    def decided(self, event: Event | None, output: Output) -> None:
        if isinstance(event, Asked):
            self._open[event.ref] = event
        if output.number is not None:
            self._paths[output.number] = _paths(output.effects)
            self._farewells[output.number] = _statuses_sent(output.effects)

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for output in outputs:
            number = output.number or 0
            paths, farewells = self._paths.pop(number, {}), self._farewells.pop(number, {})
            for change in output.changes:
                if change.kind is DocumentKind.CLAIM:
                    self._claims.setdefault(change.key, _Versions([])).documents.append(change.document)
                elif change.kind is not DocumentKind.NODE:
                    continue
                elif change.document is None:
                    self._let_go(change.key, farewells.get(change.key, ()))
                else:
                    self._keep(change.key, change.document, paths.get(change.key, ()))

    def crashed(self) -> None:
        self._open.clear()
        self._paths.clear()
        self._farewells.clear()

    def restored(self, loaded: Loaded) -> None:
        for pages in (*self._nodes.values(), *self._claims.values()):
            del pages.documents[:-1]

    def executed(self, effect: Executable) -> None:
        match effect:
            case SendStatus():
                self._status_sent(effect)
            case Send(message=NodeRegisterAck() as ack):
                self._find(
                    self._nodes.get(ack.node_id),
                    lambda page: page is not None and page["epoch"] == ack.session_epoch,
                    ack,
                )
            case Answer(ref=ref):
                asked = self._open.pop(ref, None)
                if asked is not None:
                    self._answered(asked, effect)
            case LogEvent():
                pass
            case _:
                pass

    def _keep(self, node_id: str, document: Document, path: Sequence[Document]) -> None:
        """Add a version; a status that a node passed through within one step is stored by the last one."""
        pages = self._nodes.setdefault(node_id, _Versions([])).documents
        pages += [{**document, **passed} for passed in path[:-1]]
        pages.append(document)

    def _let_go(self, node_id: str, farewells: Sequence[Document]) -> None:
        """Add the deletion: statuses that are sent with it are stored by it."""
        pages = self._nodes.setdefault(node_id, _Versions([])).documents
        before = pages[-1] if pages else None
        if before is not None:
            pages += [{**before, **said} for said in farewells]
        pages.append(None)

    def _status_sent(self, sent: SendStatus) -> None:
        status, reason = sent.status.value, sent.reason_code.value

        def matches(page: Document | None) -> bool:
            if page is None:
                return sent.status is NodeStatus.OFFLINE and reason == "removed"
            return bool(page["status"] == status and page["reason_code"] == reason)

        self._find(self._nodes.get(sent.node_id), matches, sent)

    def _find(self, pages: _Versions | None, matches: Matches, what: object) -> None:
        found = pages is not None and pages.advance([matches(page) for page in pages.documents])
        if not found:
            hold(Invariant.STORED_FIRST, holds=False, detail=f"sent {what}, stored {_shown(pages)}")

    def _answered(self, asked: Asked, answer: Answer) -> None:
        result = answer.result
        if isinstance(result, Claim):
            self._find(
                self._claims.get(result.job_id),
                lambda page: page is not None and page["claim_id"] == result.claim_id,
                result,
            )
        elif isinstance(asked, ReleaseRequested) and result is None:
            pages = self._claims.get(asked.job_id)
            claim_id = asked.claim_id
            if pages is not None:
                self._find(pages, lambda page: page is None or page["claim_id"] != claim_id, asked)
        elif result is None:
            self._granted(asked)

    def _granted(self, asked: Asked) -> None:
        match asked:
            case DrainRequested(node_id=node_id):
                self._find(self._nodes.get(node_id), lambda page: page is not None and _drained(page), asked)
            case ResumeRequested(node_id=node_id):
                self._find(self._nodes.get(node_id), lambda page: page is None or not _drained(page), asked)
            case CordonRequested(node_id=node_id, reason=reason):
                self._find(
                    self._nodes.get(node_id),
                    lambda page: page is not None and page["cordoned"] == reason,
                    asked,
                )
            case RemovalRequested(node_id=node_id):
                self._find(self._nodes.get(node_id), lambda page: page is None, asked)
            case _:
                pass


def _paths(effects: Sequence[Effect]) -> dict[str, list[Document]]:
    paths: dict[str, list[Document]] = {}
    for effect in effects:
        if isinstance(effect, LogEvent) and effect.event == "node_status_changed":
            passed = {"status": effect.fields["to"], "reason_code": effect.fields["reason_code"]}
            paths.setdefault(str(effect.fields["node_id"]), []).append(passed)
    return paths


def _statuses_sent(effects: Sequence[Effect]) -> dict[str, list[Document]]:
    sent: dict[str, list[Document]] = {}
    for effect in effects:
        if isinstance(effect, SendStatus):
            said = {"status": effect.status.value, "reason_code": effect.reason_code.value}
            sent.setdefault(effect.node_id, []).append(said)
    return sent


def _drained(page: Document) -> bool:
    drain = page["drain"]
    return drain is not None and bool(drain["by_operator"])


def _shown(pages: _Versions | None) -> list[str]:
    shown = ("status", "reason_code", "epoch", "cordoned", "drain", "claim_id", "node_id")
    return [
        "gone" if page is None else " ".join(f"{name}={page[name]}" for name in shown if name in page)
        for page in (() if pages is None else pages.documents)
    ]


# What a new process loads is what was committed: all of it, and nothing else.


class StoreInvariants(Observer):
    """Keeps a second set of books."""

    def __init__(self) -> None:
        self._documents: dict[tuple[DocumentKind, str], Mapping[str, object]] = {}

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for change in (change for batch in batches for change in batch.changes):
            if change.document is None:
                self._documents.pop((change.kind, change.key), None)
            else:
                self._documents[change.kind, change.key] = change.document

    def restored(self, loaded: Loaded) -> None:
        found = {(change.kind, change.key): change.document for change in loaded.changes}
        if found.keys() != self._documents.keys():
            differing = found.keys() ^ self._documents.keys()
            hold(Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"found or missing: {differing}")
        for key, document in self._documents.items():
            if found[key] != json.loads(json.dumps(document)):
                hold(
                    Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"{key}: {found[key]}, stored {document}"
                )


# Every published event is stored, under an id that grows over all processes of the registry.


class EventInvariants(Observer):
    """Watches numbers."""

    def __init__(self) -> None:
        self._stored: set[int] = set()
        self._newest_stored = 0
        self._newest_published = 0

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for event in (event for batch in batches for event in batch.events):
            assert event.id is not None
            gap = event.id > self._newest_stored + 1
            hold(Invariant.EVENTS_STORED, not gap, f"{event} was stored after {self._newest_stored}")
            self._stored.add(event.id)
            self._newest_stored = max(self._newest_stored, event.id)

    def executed(self, effect: Executable) -> None:
        if isinstance(effect, PublishEvent) and effect.event.id is not None:
            number = effect.event.id
            stored = number in self._stored and number > self._newest_published
            hold(
                Invariant.EVENTS_STORED,
                stored,
                f"{effect.event} was published after {self._newest_published}",
            )
            self._newest_published = number

    def restored(self, loaded: Loaded) -> None:
        newest = max((event.id or 0 for event in loaded.recent), default=0)
        hold(
            Invariant.EVENTS_STORED,
            newest == self._newest_stored,
            f"{newest} is back of {self._newest_stored}",
        )
        self._stored.clear()


_BY_TIME = frozenset({"heartbeat_timeout", "claim_expired", "claim_lost", "token_purged"})
"""Log events of what only time decides."""

_REASONS_BY_TIME = frozenset({"heartbeat_timeout", "warmup_timeout", "drain_deadline"})


class OutageInvariants(Observer):
    """Holds the registry to what it may do while its store fails, and to what it deletes for that."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._failing = False
        self._created: dict[int, str] = {}
        """By request: the tokens that it creates."""
        self._unsent: set[str] = set()
        """Tokens whose text was never sent."""

    def decided(self, event: Event | None, output: Output) -> None:
        if isinstance(event, StoreFailed | StoreRecovered):
            self._failing = isinstance(event, StoreFailed)
        elif self._failing:
            self._check(event, output)
        if isinstance(event, JoinTokenRequested):
            self._created[event.ref] = event.token_id

    def executed(self, effect: Executable) -> None:
        if isinstance(effect, Answer):
            token_id = self._created.pop(effect.ref, None)
            result = effect.result
            if (
                token_id is not None
                and isinstance(result, Refusal)
                and result.code == ErrorCode.REGISTRY_BUSY
            ):
                self._unsent.add(token_id)

    def crashed(self) -> None:
        self._failing = False
        self._created.clear()
        self._unsent.clear()

    def check_all(self) -> None:
        for token_id in self._unsent:
            gone = self._cluster.fleet.token(token_id) is None
            hold(Invariant.NOTHING_UNSENT, gone, f"the text of {token_id} was never sent, and it lives")
        for record in self._cluster.records():
            untold = record.connection is None and not record.acknowledged
            if untold and record.status is not NodeStatus.OFFLINE:
                hold(Invariant.NOTHING_UNSENT, holds=False, detail=f"{record.node_id} was never acknowledged")

    def _check(self, event: Event | None, output: Output) -> None:
        if isinstance(event, OperatorRequest | RegistrationReceived):
            nothing = not output.changes
            hold(Invariant.NO_BLIND_DECISION, nothing, f"{event} led to {output} while the store failed")
        for effect in output.effects:
            if isinstance(effect, LogEvent):
                blind = effect.event in _BY_TIME or effect.fields.get("reason_code") in _REASONS_BY_TIME
                hold(Invariant.NO_BLIND_DECISION, not blind, f"{effect} while the store failed")
