"""The fleet: every node, claim and token. Events and the time in, what to store and to send out.

Composes the registry's parts and routes each event to the one that handles it. Times are monotonic seconds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import assert_never

from gpu_agent.registry.actions import NOTHING, Answer, DocumentKind, LogEvent, Output, Send, Step
from gpu_agent.registry.claim_history import ClaimHistory
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch.dispatch import Choice, Dispatch
from gpu_agent.registry.dispatch.exclusions import (
    Eligible,
    Excluded,
    ExclusionWindow,
    Explanation,
    NoAvailableNode,
)
from gpu_agent.registry.events import (
    ClaimEvent,
    ClaimRequested,
    ClaimWaitEnded,
    ConnectionLost,
    Event,
    FiguresFetched,
    HeartbeatReceived,
    HeartbeatRepeated,
    NodeEvent,
    NodeRequest,
    RareEvent,
    RegistrationReceived,
    ReleaseRequested,
    RenewalRequested,
    SessionReported,
    Stored,
    StoreEvent,
    StoreFailed,
    StoreRecovered,
    TokenRequest,
    Traced,
    UnregistrationReceived,
)
from gpu_agent.registry.fault_reports import log_fault
from gpu_agent.registry.fleet_totals import NodeFigures, node_figures
from gpu_agent.registry.heartbeat import Heartbeats
from gpu_agent.registry.job import Claim, HeldGrant, Job
from gpu_agent.registry.lifecycle import next_deadline
from gpu_agent.registry.node import FleetCounters, NodeRecord, NodeTable
from gpu_agent.registry.operations import Operations
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.persistence import (
    RESTART_SECONDS,
    Documents,
    StoredDocument,
    UnstoredChanges,
    busy_error,
)
from gpu_agent.registry.queue import Waiting
from gpu_agent.registry.registration import Admission, Registrations, Sessions
from gpu_agent.registry.removal import NodeRemoval
from gpu_agent.registry.settings import Policy, Thresholds
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.registry.takeover import ReportedSessions
from gpu_agent.registry.timers import (
    MOST_AT_ONCE,
    Sweep,
    exclude_silent_nodes,
    extend_timeout,
    resume_timeouts,
)
from gpu_agent.registry.token_issuing import TokenRequests
from gpu_agent.registry.tokens import Credential, Token, TokenTable
from gpu_agent.wire.api import NodeExplanation
from gpu_agent.wire.codes import GpuStatus

_SCAN_SHARE = 0.5
"""The scan interval is how late a timeout may be noticed: half of it is left to a busy loop."""


class Fleet:
    """The registry's machine. Times are monotonic seconds.

    `draw` returns numbers from [0, 1). With `auth_off` any node that suggests an id may take it over while it
    is offline or disconnected. `debug` returns whether to log each heartbeat's checks and each exclusion.
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
        self._nodes = NodeTable()
        self._by_connection = self._nodes.by_connection
        self._tokens = TokenTable(thresholds.offline_retention_seconds)
        self._counters = FleetCounters()
        self._unstored = UnstoredChanges()
        self._dispatch = Dispatch(thresholds, draw)
        self._claims = ClaimRequests(thresholds, self._dispatch, debug=debug)
        self._transitions = StatusTransitions(
            thresholds, self._nodes, dispatch=self._dispatch, claims=self._claims, unstored=self._unstored
        )
        self._removal = NodeRemoval(thresholds, self._nodes, self._dispatch)
        pacer = Pacer(thresholds, self._counters, draw)
        self._heartbeats = Heartbeats(
            thresholds,
            self._tokens,
            dispatch=self._dispatch,
            claims=self._claims,
            transitions=self._transitions,
            debug=debug,
        )
        policy = Policy(allow_simulated=allow_simulated, auth_off=auth_off)
        self._registrations = Registrations(
            thresholds,
            self._nodes,
            self._tokens,
            admission=Admission(policy, self._nodes, self._tokens, removal=self._removal),
            pacer=pacer,
            transitions=self._transitions,
        )
        self._sessions = Sessions(
            self._nodes, self._transitions, dispatch=self._dispatch, removal=self._removal
        )
        self._reported_sessions = ReportedSessions(policy, self._nodes, pacer)
        self._operations = Operations(
            self._nodes,
            self._transitions,
            dispatch=self._dispatch,
            removal=self._removal,
            auth_off=auth_off,
        )
        self._token_requests = TokenRequests(self._nodes, self._tokens, self._dispatch)
        self._sweep = Sweep(
            thresholds,
            self._nodes,
            pacer=pacer,
            dispatch=self._dispatch,
            transitions=self._transitions,
            removal=self._removal,
        )
        self._documents = Documents(thresholds, self._nodes, self._tokens, dispatch=self._dispatch)
        self._auth_off = auth_off
        self._scan_every_seconds = thresholds.scan_interval_seconds * _SCAN_SHARE
        self._scan_from = 0.0

    @property
    def deadline(self) -> float | None:
        """When `wake` has something to do (monotonic seconds); at most twice per scan interval."""
        if self._unstored.store_fails:
            return self._scan_from
        expiry, queue = self._dispatch.next_expiry, self._claims.queue.deadline
        nodes = self._sweep.deadlines.earliest
        due = min(nodes, self._tokens.purges.earliest, queue, inf if expiry is None else expiry)
        return None if due == inf else max(due, self._scan_from)

    @property
    def size(self) -> int:
        """How many nodes are known, whatever their status."""
        return len(self._nodes.records)

    def is_stored(self, node_id: str) -> bool:
        """Say whether the store holds a node as it is, and its claims, with those that were released."""
        return not self._unstored.holds_part_of(node_id)

    def handle(self, event: Event, now: float) -> Output:
        """Take one event in; returns what to store and what to do then."""
        if isinstance(event, HeartbeatReceived):
            record = self._by_connection.get(event.connection)
            if record is None and self._nodes.is_dismissed(event.connection):
                return NOTHING
            consequences = self._heartbeats.handle(event, record, now)
            return NOTHING if consequences is None else self._finish(consequences)
        if isinstance(event, HeartbeatRepeated):
            record = self._by_connection.get(event.connection)
            consequences = None if record is None else self._heartbeats.repeat(event, record, now)
            return NOTHING if consequences is None else self._finish(consequences)
        if isinstance(event, FiguresFetched):
            record = self._by_connection.get(event.connection)
            if record is not None:
                self._heartbeats.refresh(event.message, record, now)
            return NOTHING
        if isinstance(event, Stored):
            self._unstored.confirm(event.number)
            return NOTHING
        step = Step(now, trace_id=event.trace_id if isinstance(event, Traced) else None)
        rare = event.request if isinstance(event, Traced) else event
        if not (self._unstored.store_fails and self._refuse(rare, step)):
            self._route(rare, step)
        return self._finish(step)

    def wake(self, now: float) -> Output:
        """Do what time alone makes due; harmless when early.

        Of many that are due at once some are left for the next call, and `deadline` is then now.
        """
        deadline = self.deadline
        if deadline is None or now < deadline:
            return NOTHING
        step = Step(now)
        if self._unstored.store_fails:
            self._exclude_silent(step)
            self._scan_from = now + self.thresholds.scan_interval_seconds
            return self._finish(step)
        ended = self._end_claims(step)
        self._sweep.run(step)
        self._token_requests.purge(step)
        self._claims.wake_queue(step)
        unfinished = self._sweep.unfinished or ended == MOST_AT_ONCE
        self._scan_from = now + (0.0 if unfinished else self._scan_every_seconds)
        return self._finish(step)

    def restore(
        self, documents: Iterable[StoredDocument], now: float, *, takeover: bool = False
    ) -> list[Output]:
        """Load what the store holds (§4, restart): call it once, before the first event."""
        return list(self.restore_each(documents, now, takeover=takeover))

    def restore_each(
        self, documents: Iterable[StoredDocument], now: float, *, takeover: bool = False
    ) -> Iterator[Output]:
        """Load document by document, so that the caller can let other tasks run; to be run to its end.

        With `takeover` another process led before. A node that no gateway reports had its connection there:
        as after any link that ends without notice it has 2 timeouts, for it reached nobody meanwhile.
        """
        for step in self._documents.load_each(documents, now):
            self._update_indexes(step)
            yield self._output(step)
        step = Step(now)
        step.log("registry_restored", {"nodes": self.size})
        self._claims.restore()
        if takeover:
            for record in self._nodes.records.values():
                extend_timeout(record)
        step.touched.update(
            dict.fromkeys(self._nodes.records)
        )  # a node with claims stays: all are loaded now
        yield self._finish(step)

    def nodes(self, *, after: str | None = None) -> list[NodeRecord]:
        """Return every node's record, by id, or those with ids greater than `after`.

        The records are the fleet's own: read them at once, and hold none of them.
        """
        records = self._nodes.records
        ids = records if after is None else [node_id for node_id in records if node_id > after]
        return [records[node_id] for node_id in sorted(ids)]

    def node(self, node_id: str) -> NodeRecord | None:
        """Return one node's record, the fleet's own: read it at once; None when the id is not known."""
        return self._nodes.records.get(node_id)

    @property
    def changed_nodes(self) -> set[str]:
        """Nodes, removed ones too, of which something that people see may have changed, figures apart.

        The fleet's view empties it; it never holds more than the ids of all nodes.
        """
        return self._dispatch.changed_nodes

    def gpu_statuses(self, node_id: str) -> tuple[GpuStatus, ...]:
        """Return what each GPU of a node is for jobs now, without the parents of MIG devices."""
        return self._dispatch.gpu_statuses(node_id, self._claims.history.is_idle)

    def figures_of(self, node_id: str) -> NodeFigures | None:
        """Return what a node adds to the figures of the fleet; None when the id is not known."""
        record = self._nodes.records.get(node_id)
        return None if record is None else node_figures(record, self.gpu_statuses(node_id))

    def wants_exact_figures(self, connection: int) -> bool:
        """Whether each change of the node on this connection is needed as a whole, memory to the MiB."""
        record = self._by_connection.get(connection)
        return record is not None and self._heartbeats.wants_whole_heartbeats(record)

    def explain(self, job: Job, now: float) -> Explanation:
        """Explain a job: which nodes could take it, and what excludes each other one (A-3)."""
        return Explanation.of(job, self.explain_each(job, now))

    def explain_each(self, job: Job, now: float) -> Iterator[Eligible | Excluded]:
        """Explain a job node by node, so that the caller can let other tasks run."""
        return self._dispatch.explain_each(job, now)

    def select(self, job: Job, now: float) -> Choice | Claim | NoAvailableNode:
        """Return what a claim request would get: the job's claim, the best node, or why there is none.

        Reserves nothing, and counts no refusal.
        """
        held = self._dispatch.claim_of(job.job_id)
        return held if held is not None and held.expires_at > now else self._dispatch.select(job, now)

    def explain_node(self, node_id: str, now: float, model: str | None = None) -> NodeExplanation | None:
        """Explain which jobs a node is excluded from now; None when the id is not known."""
        return self._dispatch.explain_node(node_id, now, model)

    def exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Return what excluded nodes in the failed dispatches of the last hour, by the minute."""
        return self._claims.exclusions.windows(now)

    def finished_exclusions(self, now: float) -> Sequence[ExclusionWindow]:
        """Return the minutes with failed dispatches that ended since the last call."""
        return self._claims.exclusions.finished(now)

    def claims(self) -> list[Claim]:
        """Return every claim."""
        return self._dispatch.claims()

    def held(self) -> list[HeldGrant]:
        """Return what ended claims still hold."""
        return self._dispatch.held()

    def held_of(self, job_id: str) -> list[HeldGrant]:
        """Return what ended claims of a job still hold."""
        return self._dispatch.held_of(job_id)

    def takes_slots(self, node_id: str) -> bool:
        """Whether a node has a GPU for a job without GPUs of its own (§5.1)."""
        return self._dispatch.takes_slots(node_id)

    def queue_place(self, job_id: str) -> int | None:
        """Return a job's place in the queue, from 1; None where it does not wait."""
        return self._claims.queue.place_of(job_id)

    def waiting(self, job_id: str) -> Waiting | None:
        """Return a job that waits for capacity; None where it does not."""
        return self._claims.queue.of(job_id)

    def queue(self) -> list[Waiting]:
        """Return the jobs that wait for capacity, in their order."""
        return self._claims.queue.in_order()

    @property
    def queue_length(self) -> int:
        """How many jobs wait for capacity."""
        return len(self._claims.queue)

    @property
    def queue_since(self) -> float | None:
        """Since when the job waits that has waited longest; None where none waits."""
        return self._claims.queue.earliest_since

    @property
    def claim_history(self) -> ClaimHistory:
        """What happened to claims, ended ones included."""
        return self._claims.history

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._dispatch.claim_of(job_id)

    def credential(self, digest: str, now: float) -> Credential | None:
        """Return what the token of this digest stands for now; None when it opens nothing."""
        return self._tokens.credential(digest, now)

    def token(self, token_id: str) -> Token | None:
        """Return a join or operator token by its id."""
        return self._tokens.by_id.get(token_id)

    def reserved(self, token_id: str) -> int:
        """Count the nodes that joined by a token and have sent no heartbeat yet."""
        return len(self._tokens.reserved(token_id))

    def tokens(self) -> list[Token]:
        """Return every join and operator token, the oldest first."""
        return sorted(self._tokens.by_id.values(), key=lambda token: (token.created_at, token.token_id))

    def _route(self, event: RareEvent, step: Step) -> None:
        if isinstance(event, NodeEvent):
            self._handle_node(event, step)
        elif isinstance(event, NodeRequest):
            self._operations.handle(event, step)
        elif isinstance(event, ClaimEvent):
            self._handle_claim(event, step)
        elif isinstance(event, TokenRequest):
            self._token_requests.handle(event, step)
        elif isinstance(event, ClaimWaitEnded):
            self._claims.end_wait(event, step)
        elif isinstance(event, StoreFailed):
            self._store_failed(event, step)
        else:
            self._store_recovered(event, step)

    def _refuse(self, event: RareEvent, step: Step) -> bool:
        """While the store fails, refuse what would change something or depend on what is not stored (§4).

        Returns False for what goes on: ended connections, faults, a node's own drain, and the renewal of a
        claim that is stored. A node that leaves at once is silent from then on, which is decided afterwards.
        """
        if isinstance(event, NodeEvent):
            if isinstance(event, RegistrationReceived):
                if not self._nodes.is_dismissed(event.connection):
                    step.immediate.append(Send(event.connection, busy_error(event.message.node_id)))
                return True
            return isinstance(event, UnregistrationReceived) and not event.message.drain
        if isinstance(event, StoreEvent | ClaimWaitEnded):
            return False
        if (
            isinstance(event, RenewalRequested)
            and event.ttl_seconds is None
            and self._is_claim_stored(event.job_id)
        ):
            return False
        step.immediate.append(Answer(event.ref, self._unstored.refusal()))
        return True

    def _is_claim_stored(self, job_id: str) -> bool:
        claim = self._dispatch.claim_of(job_id)
        return claim is not None and not self._unstored.holds((DocumentKind.CLAIM, job_id))

    def _store_failed(self, event: StoreFailed, step: Step) -> None:
        """Delete the tokens whose text was sent to no one: the store does so once it answers."""
        for unsent in self._unstored.fail(event.problem):
            self._token_requests.delete_unsent(unsent, step)
        self._claims.refuse_waiting(step, self._unstored.refusal())
        self._scan_from = step.now

    def _store_recovered(self, event: StoreRecovered, step: Step) -> None:
        """Decide by time again; a long outage counts as a restart (§4)."""
        restarted = event.outage_seconds >= RESTART_SECONDS
        self._unstored.recover()
        records = self._nodes.records.values()
        moved = resume_timeouts(records, step.now, restarted=restarted)
        step.touched.update(dict.fromkeys(record.node_id for record in moved))
        if restarted:
            self._claims.renew_all(step.now)
            self._claims.queue.clear()
        self._scan_from = step.now

    def _exclude_silent(self, step: Step) -> None:
        silent = exclude_silent_nodes(self._nodes.records.values(), step.now, store_fails=True)
        self._dispatch.update_suspected(silent)
        step.touched.update(dict.fromkeys(record.node_id for record in silent))

    def _handle_node(self, event: NodeEvent, step: Step) -> None:
        if isinstance(event, ConnectionLost):
            self._sessions.connection_lost(event, step)
        elif self._nodes.is_dismissed(event.connection):
            return
        elif isinstance(event, RegistrationReceived):
            self._reported_sessions.bind_repeated(event, step)
            self._registrations.register(event, step)
        elif isinstance(event, SessionReported):
            self._reported_sessions.report(event, step)
        elif isinstance(event, UnregistrationReceived):
            self._sessions.unregister(event, step)
        else:
            log_fault(event, self._nodes, step)

    def _handle_claim(self, event: ClaimEvent, step: Step) -> None:
        if not self._unstored.store_fails:
            cause, step.trace_id = step.trace_id, None  # no request is the cause of claims that expire
            self._end_claims(
                step, of_job=event.job.job_id if isinstance(event, ClaimRequested) else event.job_id
            )
            step.trace_id = cause
        match event:
            case ClaimRequested():
                self._claims.claim(event, step)
            case RenewalRequested():
                self._claims.renew(event, step, stored=self._is_claim_stored(event.job_id))
            case ReleaseRequested():
                for node_id in self._claims.release(event, step):
                    self._transitions.finish_drain(self._nodes.records[node_id], step)
            case _ as unreachable:
                assert_never(unreachable)

    def _end_claims(self, step: Step, *, of_job: str | None = None) -> int:
        """End claims whose time is over, that of `of_job` in any case; returns how many."""
        ended = self._claims.expire(step, most=MOST_AT_ONCE, of_job=of_job)
        for node_id in dict.fromkeys(grant.node_id for claim in ended for grant in claim.grants):
            self._transitions.finish_drain(self._nodes.records[node_id], step)
        return len(ended)

    def _finish(self, step: Step) -> Output:
        if step.touched:
            self._removal.count_offline(step)
            if not self._unstored.store_fails:
                self._removal.evict(step, auth_off=self._auth_off)
            self._update_indexes(step)
        return self._output(step)

    def _output(self, step: Step) -> Output:
        """Write the documents that a step changes, as they are at its end."""
        effects = (*map(self._with_hostname, step.logged), *step.effects)
        if not (step.changed or effects or step.immediate):
            return NOTHING
        self.changed_nodes.update(*step.changed.values())
        changes = tuple(self._documents.change_of(key, step.now) for key in step.changed)
        number = self._unstored.add(step) if changes else None
        return Output(changes, effects, number, tuple(step.immediate))

    def _with_hostname(self, logged: LogEvent) -> LogEvent:
        """Name the machine beside the id of its node (§3.1)."""
        fields = logged.fields
        if "hostname" in fields:
            return logged
        record = self._nodes.records.get(str(fields.get("node_id")))
        if record is None or record.hostname is None:
            return logged
        return LogEvent(logged.event, {**fields, "hostname": record.hostname}, logged.level)

    def _update_indexes(self, step: Step) -> None:
        """Update deadlines and counters by the nodes that a step touched."""
        for node_id in step.touched:
            record = self._nodes.records.get(node_id)
            if record is None:
                self._sweep.deadlines.cancel(node_id)
                self._tokens.remove_node(node_id)
                self._counters.remove(node_id)
            else:
                self._counters.count(record)
                self._sweep.deadlines.at(node_id, next_deadline(record, self.thresholds))
