"""Nothing is told before its save: whatever leaves the registry stands in a document that is kept.

Each kept document of a node is remembered until something newer has been told of the node. What is told
must be one of those, and never older than what was told before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_agent.registry.actions import Action, Answer, DocumentKind, LogEvent, Save, Send, SendStatus
from gpu_agent.registry.events import (
    ClaimRequested,
    CordonRequested,
    DrainRequested,
    Event,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
)
from gpu_agent.registry.job import Claim
from gpu_agent.server.effects import Doing, Publish
from gpu_agent.store.base import Batch, Loaded
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold

Document = Mapping[str, Any]
Tells = Callable[[Document | None], bool]
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
class _Pages:
    """What was kept of one thing since the page that was last told from; None where it was let go."""

    kept: list[Document | None]

    def turn_to(self, tells: Sequence[bool]) -> bool:
        """Drop the pages before the first that tells it; False when none does."""
        if True not in tells:
            return False
        del self.kept[: tells.index(True)]
        return True


class StoreFirstInvariants(Observer):
    """Holds what is told to what is kept."""

    def __init__(self, scene: Cluster) -> None:
        self._scene = scene
        self._nodes: dict[str, _Pages] = {}
        self._claims: dict[str, _Pages] = {}
        self._open: dict[int, Asked] = {}
        self._paths: dict[int, dict[str, list[Document]]] = {}
        """By save: the statuses that its step gave each node, one after the other."""
        self._farewells: dict[int, dict[str, list[Document]]] = {}
        """By save: the statuses that are told of each node once it is kept."""

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if len(actions) > 1 and any(isinstance(one, Save) for one in actions[1:]):
            hold(Invariant.SAVED_FIRST, holds=False, detail=f"{event}: a save stands behind {actions[0]}")
        if isinstance(event, Asked):
            self._open[event.ref] = event
        if actions and isinstance(actions[0], Save):
            self._paths[actions[0].save] = _paths(actions)
            self._farewells[actions[0].save] = _told(actions)

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for save in saves:
            paths, farewells = self._paths.pop(save.save, {}), self._farewells.pop(save.save, {})
            for change in save.changes:
                if change.kind is DocumentKind.CLAIM:
                    self._claims.setdefault(change.key, _Pages([])).kept.append(change.document)
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

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        for pages in (*self._nodes.values(), *self._claims.values()):
            del pages.kept[:-1]

    def carried(self, doing: Doing) -> None:
        match doing:
            case SendStatus():
                self._status_told(doing)
            case Send(message=NodeRegisterAck() as ack):
                self._find(
                    self._nodes.get(ack.node_id),
                    lambda page: page is not None and page["epoch"] == ack.session_epoch,
                    ack,
                )
            case Answer(ref=ref):
                asked = self._open.pop(ref, None)
                if asked is not None:
                    self._answered(asked, doing)
            case LogEvent():
                pass
            case _:
                pass

    def _keep(self, node_id: str, document: Document, path: Sequence[Document]) -> None:
        """Turn a page; what a node passed through within one step is kept by what it came to."""
        pages = self._nodes.setdefault(node_id, _Pages([])).kept
        pages += [{**document, **passed} for passed in path[:-1]]
        pages.append(document)

    def _let_go(self, node_id: str, farewells: Sequence[Document]) -> None:
        """Turn the last page: a verdict that waited for the disk until its node went is kept by that."""
        pages = self._nodes.setdefault(node_id, _Pages([])).kept
        before = pages[-1] if pages else None
        if before is not None:
            pages += [{**before, **said} for said in farewells]
        pages.append(None)

    def _status_told(self, told: SendStatus) -> None:
        status, reason = told.status.value, told.reason_code.value

        def tells(page: Document | None) -> bool:
            if page is None:
                return told.status is NodeStatus.OFFLINE and reason == "removed"
            return bool(page["status"] == status and page["reason_code"] == reason)

        self._find(self._nodes.get(told.node_id), tells, told)

    def _find(self, pages: _Pages | None, tells: Tells, what: object) -> None:
        found = pages is not None and pages.turn_to([tells(page) for page in pages.kept])
        if not found:
            hold(Invariant.SAVED_FIRST, holds=False, detail=f"told {what}, kept {_shown(pages)}")

    def _answered(self, asked: Asked, answer: Answer) -> None:
        result = answer.result
        if isinstance(result, Claim):
            self._find(
                self._claims.get(result.job_id),
                lambda page: page is not None and page["node_id"] == result.node_id,
                result,
            )
        elif isinstance(asked, ReleaseRequested) and result is None:
            pages = self._claims.get(asked.job_id)
            if pages is not None:  # a lost claim that is given back was let go with its node
                self._find(pages, lambda page: page is None, asked)
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


def _paths(actions: Sequence[Action]) -> dict[str, list[Document]]:
    paths: dict[str, list[Document]] = {}
    for action in actions:
        if isinstance(action, LogEvent) and action.event == "node_status_changed":
            passed = {"status": action.fields["to"], "reason_code": action.fields["reason_code"]}
            paths.setdefault(str(action.fields["node_id"]), []).append(passed)
    return paths


def _told(actions: Sequence[Action]) -> dict[str, list[Document]]:
    told: dict[str, list[Document]] = {}
    for action in actions:
        if isinstance(action, SendStatus):
            said = {"status": action.status.value, "reason_code": action.reason_code.value}
            told.setdefault(action.node_id, []).append(said)
    return told


def _drained(page: Document) -> bool:
    drain = page["drain"]
    return drain is not None and bool(drain["by_operator"])


def _shown(pages: _Pages | None) -> list[str]:
    shown = ("status", "reason_code", "epoch", "cordoned", "drain", "job_id", "node_id")
    return [
        "gone" if page is None else " ".join(f"{name}={page[name]}" for name in shown if name in page)
        for page in (() if pages is None else pages.kept)
    ]


# What a new process finds on the disk is exactly what was committed: all of it, and nothing else.


class StoreInvariants(Observer):
    """Keeps a second set of books."""

    def __init__(self) -> None:
        self._documents: dict[tuple[DocumentKind, str], Mapping[str, object]] = {}

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for change in (change for batch in batches for change in batch.changes):
            if change.document is None:
                self._documents.pop((change.kind, change.key), None)
            else:
                self._documents[change.kind, change.key] = change.document

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        found = {(change.kind, change.key): change.document for change in loaded.changes}
        if found.keys() != self._documents.keys():
            differing = found.keys() ^ self._documents.keys()
            hold(Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"found or missing: {differing}")
        for key, document in self._documents.items():
            if found[key] != json.loads(json.dumps(document)):
                hold(Invariant.STORE_IS_A_PREFIX, holds=False, detail=f"{key}: {found[key]}, kept {document}")


# Every event that was told is kept, under a number that grows over all processes of the registry.


class EventInvariants(Observer):
    """Watches numbers."""

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._newest_kept = 0
        self._newest_told = 0

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for event in (event for batch in batches for event in batch.events):
            assert event.id is not None
            self._kept.add(event.id)
            self._newest_kept = max(self._newest_kept, event.id)

    def carried(self, doing: Doing) -> None:
        if isinstance(doing, Publish) and doing.event.id is not None:
            number = doing.event.id
            kept = number in self._kept and number > self._newest_told
            hold(Invariant.EVENTS_KEPT, kept, f"{doing.event} was told after {self._newest_told}")
            self._newest_told = number

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        newest = max((event.id or 0 for event in loaded.recent), default=0)
        hold(Invariant.EVENTS_KEPT, newest == self._newest_kept, f"{newest} is back of {self._newest_kept}")
        self._kept.clear()
