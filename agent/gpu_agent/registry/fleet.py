"""The fleet: every node, claim and token. Events and the time in, what to store and to send out.

Composes the registry's parts and routes each event to the one that handles it. Holds no rule of the protocol itself.
Times are monotonic seconds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import assert_never

from gpu_agent.registry.actions import Action
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.credentials import Credential
from gpu_agent.registry.deadlines import Deadlines, next_deadline
from gpu_agent.registry.dispatch.dispatch import Choice, Dispatch
from gpu_agent.registry.dispatch.refusals import (
    Eligible,
    Excluded,
    ExclusionWindow,
    Explanation,
    NoAvailableNode,
)
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    FaultReported,
    HeartbeatReceived,
    JoinTokenRequested,
    NodeEvent,
    OperatorTokenRequested,
    RareEvent,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    RevocationRequested,
    RotationRequested,
    Saved,
    SaveFailed,
    Traced,
    UnregistrationReceived,
)
from gpu_agent.registry.explain import NodeExplanation, explain_node
from gpu_agent.registry.heartbeat import Heartbeats
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.operations import Operations
from gpu_agent.registry.pacing import FleetCounters, Pacer
from gpu_agent.registry.persistence import Keeping, StoredDocument
from gpu_agent.registry.registration import OfflineEviction, Registrations
from gpu_agent.registry.saves import Saves, Undo
from gpu_agent.registry.settings import Policy, Thresholds
from gpu_agent.registry.status import House, StatusTransitions
from gpu_agent.registry.step import Step
from gpu_agent.registry.timers import Sweep
from gpu_agent.registry.token_issuing import TokenRequests
from gpu_agent.registry.tokens import Token, TokenTable

# The fleet: all nodes, all claims, one door. Events and the time in, actions out; nothing else moves it.
#
# Composes the parts and routes events to them; holds no rule of the protocol itself. The
# shell carries the actions out in order, and nothing that follows a `Save` before it is kept.


NOTHING: tuple[Action, ...] = ()

_SCAN_SHARE = 0.5
"""The scan interval is how late a timeout may be noticed: half of it is left to a busy loop."""


class Fleet:
    """The registry's machine. Times are monotonic seconds.

    `draw` returns numbers from [0, 1). With `auth_off` an id that is offline or disconnected may be
    taken over by whoever names it. `debug` tells at each moment whether a note of every beat and every
    exclusion is wanted.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        draw: Callable[[], float],
        *,
        allow_simulated: bool = False,
        auth_off: bool = False,
        debug: Callable[[], bool] = lambda: False,
    ) -> None:
        self.thresholds = thresholds
        self._roster = NodeTable()
        self._tokens = TokenTable(thresholds.offline_retention_seconds)
        self._deadlines = Deadlines()
        self._census = FleetCounters()
        self._pacer = Pacer(thresholds, self._census, draw)
        self._dispatch = Dispatch(thresholds, draw)
        claiming = ClaimRequests(thresholds, self._dispatch, debug=debug)
        verdicts = StatusTransitions(thresholds, self._roster, dispatch=self._dispatch, claiming=claiming)
        house = House(
            thresholds=thresholds,
            policy=Policy(allow_simulated=allow_simulated, auth_off=auth_off),
            pacer=self._pacer,
            roster=self._roster,
            tokens=self._tokens,
            dispatch=self._dispatch,
            claiming=claiming,
            verdicts=verdicts,
        )
        self._claiming, self._verdicts = claiming, verdicts
        self._beats = Heartbeats(house, debug=debug)
        self._sessions = Registrations(house)
        self._wishes = Operations(house)
        self._issuing = TokenRequests(house)
        self._rounds = Sweep(house, self._deadlines)
        self._keeping = Keeping(house)
        self._filing = NodeIndexes(house, self._deadlines, self._census)
        self._crowd = OfflineEviction(house) if auth_off else None
        self._saves = Saves(
            write=self._keeping.written,
            undo=Undo(house),
            retry_seconds=thresholds.scan_interval_seconds,
        )
        self._scan_every_seconds = thresholds.scan_interval_seconds * _SCAN_SHARE
        self._scan_from = 0.0

    @property
    def deadline(self) -> float | None:
        """When `wake` has something to do (monotonic seconds); at most twice per scan interval."""
        looks = (self._deadlines.earliest, self._dispatch.next_expiry)
        waiting = (*looks, self._saves.deadline, self._tokens.deadline)
        due = [time for time in waiting if time is not None]
        return max(min(due), self._scan_from) if due else None

    @property
    def size(self) -> int:
        """How many nodes are known, whatever their status."""
        return len(self._roster.records)

    def handle(self, event: Event, now: float) -> Sequence[Action]:
        """Take one event in, and say what to do about it, in order."""
        if isinstance(event, HeartbeatReceived):
            consequences = self._beats.arrived(event, now)
            return NOTHING if consequences is None else self._finish(consequences)
        step = Step(now, trace_id=event.trace_id if isinstance(event, Traced) else None)
        self._take(event.asked if isinstance(event, Traced) else event, step)
        return self._finish(step)

    def wake(self, now: float) -> Sequence[Action]:
        """Draw the consequences of time alone; harmless when early.

        Of many that are due at once some are left for a next call, for which `deadline` asks at once.
        """
        deadline = self.deadline
        if deadline is None or now < deadline:
            return NOTHING
        step = Step(now)
        self._rounds.go(step)
        self._issuing.purge(step)
        self._saves.retry(step)
        goes_on = self._rounds.unfinished or self._saves.goes_on
        self._scan_from = now + (0.0 if goes_on else self._scan_every_seconds)
        return self._finish(step)

    def restore(self, kept: Iterable[StoredDocument], now: float) -> Sequence[Action]:
        """Take back what the store kept (§4, restart): call it once, before the first event."""
        return [action for actions in self.restoring(kept, now) for action in actions]

    def restoring(self, kept: Iterable[StoredDocument], now: float) -> Iterator[Sequence[Action]]:
        """Restore thing by thing, for those who must not stop for a whole fleet; to be run to its end."""
        for step in self._keeping.taking_back(kept, now):
            self._filing.file(step)
            yield self._saves.sealed(step)
        step = Step(now)
        step.note("registry_restored", {"nodes": self.size})
        if self._crowd is not None:  # whom it may let go is known only now that the claims are
            step.touched.update(dict.fromkeys(self._roster.records))
        yield self._finish(step)

    def nodes(self, *, after: str | None = None) -> list[NodeRecord]:
        """Return every node's record, by id: the fleet's own, to be read at once and not kept.

        With `after` only those whose ids come behind it.
        """
        records = self._roster.records
        ids = records if after is None else [node_id for node_id in records if node_id > after]
        return [records[node_id] for node_id in sorted(ids)]

    def node(self, node_id: str) -> NodeRecord | None:
        """Return one node's record, to be read at once and not kept; None when the id is not known."""
        return self._roster.records.get(node_id)

    def explain(self, job: Job, now: float) -> Explanation:
        """Say of every node whether it could take a job, and why not (A-3)."""
        return Explanation.of(job.job_id, self.explaining(job, now))

    def explaining(self, job: Job, now: float) -> Iterator[Eligible | Excluded]:
        """Explain a job node by node, for those who must not stop for a whole fleet."""
        return self._dispatch.explaining(job, now)

    def select(self, job: Job, now: float) -> Choice | Claim | NoAvailableNode:
        """Say what `ClaimAsked` would be answered: the claim that is held, the best place, or why nobody.

        Reserves nothing, and a refusal counts nowhere.
        """
        held = self._dispatch.claim_of(job.job_id)
        return held if held is not None and held.expires_at > now else self._dispatch.select(job, now)

    def why(self, node_id: str, now: float, model: str | None = None) -> NodeExplanation | None:
        """Say which jobs a node would be refused now, and why; None when the id is not known."""
        view = self._dispatch.view(node_id)
        return None if view is None else explain_node(view, now, model)

    def exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Count what dispatches failed on in the last hour, by the minute."""
        return self._claiming.exclusions.windows(now)

    def finished_exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Return the minutes that ended since this was last asked and in which dispatches failed."""
        return self._claiming.exclusions.finished(now)

    def claims(self) -> list[Claim]:
        """Return every claim that is held, by its job."""
        return self._dispatch.claims()

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._dispatch.claim_of(job_id)

    def credential(self, digest: str, now: float) -> Credential | None:
        """Say what the token of this digest stands for now; None when it opens nothing."""
        return self._tokens.credential(digest, now)

    def token(self, token_id: str) -> Token | None:
        """Return a join or operator token by its id."""
        return self._tokens.by_id.get(token_id)

    def reserved(self, token_id: str) -> int:
        """Count the nodes that came by a join token and have not beaten yet."""
        return len(self._tokens.reserved(token_id))

    def tokens(self) -> list[Token]:
        """Return every join and operator token, the oldest first."""
        return sorted(self._tokens.by_id.values(), key=lambda token: (token.created_at, token.token_id))

    def _take(self, event: RareEvent, step: Step) -> None:
        match event:
            case RegistrationReceived() | UnregistrationReceived() | FaultReported() | ConnectionLost():
                self._node_did(event, step)
            case (
                DrainRequested()
                | ResumeRequested()
                | CordonRequested()
                | RemovalRequested()
                | ControlRequested()
            ):
                self._wishes.asked(event, step)
            case ClaimRequested() | RenewalRequested() | ReleaseRequested():
                self._scheduler_asked(event, step)
            case (
                JoinTokenRequested() | OperatorTokenRequested() | RevocationRequested() | RotationRequested()
            ):
                self._issuing.asked(event, step)
            case Saved():
                self._saves.kept(event.save)
            case SaveFailed():
                self._saves.failed(event.save, event.detail, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _node_did(self, event: NodeEvent, step: Step) -> None:
        if isinstance(event, ConnectionLost):
            self._sessions.lost(event.connection, step)
        elif self._roster.dismissed(event.connection):
            return
        elif isinstance(event, RegistrationReceived):
            self._sessions.register(event, step)
        elif isinstance(event, UnregistrationReceived):
            self._sessions.goodbye(event, step)
        else:
            self._sessions.fault(event, step)

    def _scheduler_asked(
        self, event: ClaimRequested | RenewalRequested | ReleaseRequested, step: Step
    ) -> None:
        cause, step.trace_id = step.trace_id, None  # nobody's asking ends the claims that have expired
        self._rounds.end_claims(
            step, of_job=event.job.job_id if isinstance(event, ClaimRequested) else event.job_id
        )
        step.trace_id = cause
        match event:
            case ClaimRequested():
                self._claiming.ask(event, step)
            case RenewalRequested():
                self._claiming.renew(event, step)
            case ReleaseRequested():
                record = self._roster.records.get(self._claiming.release(event, step) or "")
                if record is not None:
                    self._verdicts.settle(record, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _finish(self, step: Step) -> Sequence[Action]:
        if self._crowd is not None:
            self._crowd.evict(step)
        step = self._saves.admitted(step)
        self._filing.file(step)
        return self._saves.sealed(step)


# The lists kept of nodes beside their records: a node is entered anew in each whenever a step touched it.


class NodeIndexes:
    """Keeps the deadlines, the census and the nodes' tokens as the records are."""

    def __init__(self, house: House, deadlines: Deadlines, census: FleetCounters) -> None:
        self._house = house
        self._deadlines = deadlines
        self._census = census

    def file(self, step: Step) -> None:
        """Enter whom a step touched, and strike out whom it let go."""
        house = self._house
        for node_id in step.touched:
            record = house.roster.records.get(node_id)
            if record is None:
                self._deadlines.forget(node_id)
                house.tokens.forget(node_id)
                self._census.forget(node_id)
            else:
                house.tokens.fit(record)
                self._census.count(record)
                self._deadlines.at(node_id, next_deadline(record, house.thresholds))
