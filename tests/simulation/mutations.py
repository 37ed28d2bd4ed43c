"""Rules of the product broken on purpose, one at a time, each with the promise that is seen to break."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from unittest.mock import patch

from gpu_agent.registry import declaration, lifecycle, node_checks, registration, takeover, token_issuing
from gpu_agent.registry import health as flapping
from gpu_agent.registry import persistence as documents
from gpu_agent.registry import timers as silence
from gpu_agent.registry.actions import Answer, DocumentKind, Output, Send, Step
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch import explain, filters, gpu_allocation, gpu_filters, index
from gpu_agent.registry.dispatch.candidate import Candidate, ReservedMemory
from gpu_agent.registry.dispatch.dispatch import ClaimTable, Dispatch
from gpu_agent.registry.dispatch.filter_row import Filter, NodeState
from gpu_agent.registry.dispatch.gpu_identity import GpuIdentities
from gpu_agent.registry.events import ClaimRequested, SessionReported
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.heartbeat import Heartbeats
from gpu_agent.registry.job import Claim, ClaimEnd, GpuDemand, Sharing, sharing_of
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.persistence import Documents, StoredDocument, UnstoredChanges
from gpu_agent.registry.queue import ClaimQueue
from gpu_agent.registry.registration import Registrations, Sessions
from gpu_agent.registry.removal import NodeRemoval
from gpu_agent.registry.status import StatusTransitions
from gpu_agent.registry.takeover import ReportedSessions
from gpu_agent.registry.token_issuing import TokenRequests
from gpu_agent.server import loop as loop_module
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FleetLoop
from gpu_agent.session.backoff import ConnectionAttempts
from gpu_agent.session.machine import SessionMachine
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire import codes
from gpu_agent.wire.codes import ExclusionReason, NodeStatus, Reaction, ReasonCode
from tests.simulation import registry_process
from tests.simulation.fault_profile import Fault, FaultProfile, dense_profile
from tests.simulation.invariants.base import Invariant

# How rules of the product are broken on purpose: each replaces one thing for as long as it is applied.


# ruff: noqa: ANN401 - what is replaced is passed through as it is


Patch = Callable[[], AbstractContextManager[Any]]


def under(*faults: Fault, nodes: int = 8, auth_off: bool = False) -> Callable[[int], FaultProfile]:
    return lambda seed: dense_profile(seed, *faults, nodes=nodes, auth_off=auth_off)


def without(*reasons: ExclusionReason) -> Patch:
    """Let dispatch overlook these reasons."""
    table = tuple(one for one in filters.FILTERS if one.reason not in reasons)
    states = tuple(one for one in filters._NODE_STATES if one[0] not in reasons)

    @contextmanager
    def apply() -> Iterator[None]:
        with (
            patch.object(filters, "FILTERS", table),
            patch.object(filters, "_NODE_STATES", states),
            patch.object(index, "FILTERS", table),
        ):
            yield

    return apply


def method(owner: object, name: str, replacement: Callable[..., Any]) -> Patch:
    return lambda: patch.object(owner, name, replacement)


def around(owner: object, name: str, remake: Callable[..., Any]) -> Patch:
    """Replace something by what is made of it."""
    true = getattr(owner, name)
    return lambda: patch.object(owner, name, lambda *given, **named: remake(true, *given, **named))


def node_document(**parts: object) -> Patch:
    """Keep a node's document without some of its parts."""
    return around(documents, "serialize_node", lambda write, *given: {**write(*given), **parts})


def sent_first(write: Callable[..., Output], fleet: Fleet, step: Step) -> Output:
    output = write(fleet, step)
    early = tuple(one for one in output.effects if isinstance(one, Answer | Send))
    rest = tuple(one for one in output.effects if not isinstance(one, Answer | Send))
    return replace(output, effects=rest, immediate=(*output.immediate, *early))


def without_deletions(prepare: Callable[..., Any], output: Output, **named: Any) -> Any:
    stored = tuple(one for one in output.changes if one.document is not None)
    return prepare(replace(output, changes=stored), **named)


def not_waiting(take: Callable[..., None], loop: FleetLoop, output: Output) -> None:
    take(loop, output)
    if output.changes and loop._queue:
        entry = loop._queue[-1]
        while entry.effects:
            loop._executor.execute(entry.effects.popleft())


def taken_for_stored(committed: Callable[..., None], loop: FleetLoop, whole: Any, _problem: Any) -> None:
    committed(loop, whole, None)


def answered_anyhow(_split: Callable[..., Any], effects: Sequence[Any], _problem: str) -> Any:
    answers = [one for one in effects if isinstance(one, Answer | Send)]
    return answers, [one for one in effects if not isinstance(one, Answer | Send)]


def time_goes_on(fail: Callable[..., Any], unstored: UnstoredChanges, problem: str) -> Any:
    unsent = fail(unstored, problem)
    unstored.store_fails = False
    return unsent


def nothing_is_unsent(fail: Callable[..., Any], unstored: UnstoredChanges, problem: str) -> list[str]:
    fail(unstored, problem)
    return []


def lost_and_not_purged(lost: Callable[..., None], sessions: Sessions, *given: Any) -> None:
    with patch.object(NodeRemoval, "purge", lambda *_, **__: None):
        lost(sessions, *given)


def without_claims(
    load: Callable[..., None], documents: Documents, stored: StoredDocument, step: Step
) -> None:
    if stored.kind is not DocumentKind.CLAIM:
        load(documents, stored, step)


def claimed_again(
    claim: Callable[..., Any], requests: ClaimRequests, event: ClaimRequested, step: Step
) -> Any:
    requests._dispatch.end(event.job.job_id, ClaimEnd.RELEASED, step.now)
    return claim(requests, event, step)


@contextmanager
def full_nodes_pass() -> Iterator[None]:
    """Let dispatch overlook that no slot is free; the filters by GPU, of the same reason, stay."""

    def is_row(one: Filter) -> bool:
        return one.reason is ExclusionReason.CAPACITY_EXCEEDED and isinstance(one.key, NodeState)

    table = tuple(one for one in filters.FILTERS if not is_row(one))
    states = tuple(one for one in filters._NODE_STATES if one[0] is not ExclusionReason.CAPACITY_EXCEEDED)
    with (
        patch.object(filters, "FILTERS", table),
        patch.object(filters, "_NODE_STATES", states),
        patch.object(index, "FILTERS", table),
    ):
        yield


def first_node_alone(place: Callable[..., Any], *given: Any) -> Any:
    placed = place(*given)
    return placed and placed[:1]


def whatever_its_id(current: Callable[..., Any], requests: ClaimRequests, event: Any, step: Step) -> Any:
    return current(requests, replace(event, claim_id=None), step)


def only_while_it_lives(
    occupy: Callable[..., None],
    dispatch: Dispatch,
    candidate: Any,
    claim: Claim,
    *given: Any,
    ended: bool = False,
) -> None:
    if not (ended and sharing_of(claim.job) is Sharing.EXCLUSIVE):
        occupy(dispatch, candidate, claim, *given, ended=ended)


def of_any_kind(candidate: Candidate, demand: GpuDemand) -> list[GpuState]:
    if demand.sharing is not Sharing.EXCLUSIVE:
        return gpu_allocation.choose_gpus(candidate, demand)
    gpus = list(candidate.record.gpus.values())
    return [gpus[place] for place in candidate.free_places][: demand.number]


def whatever_is_cordoned(why: Callable[..., str | None], candidate: Candidate, gpu: GpuState) -> str | None:
    desired = candidate.record.desired
    cordons, desired.gpu_cordons = desired.gpu_cordons, {}
    try:
        return why(candidate, gpu)
    finally:
        desired.gpu_cordons = cordons


def without_failed_checks(write: Callable[..., None], record: NodeRecord, *given: Any) -> None:
    write(record, *given)
    if record.checks is not None:
        record.checks.failed = ()


@contextmanager
def nothing_reserved() -> Iterator[None]:
    with (
        patch.object(gpu_filters, "is_kept_from", lambda *_: False),
        patch.object(index, "is_kept_from", lambda *_: False),
    ):
        yield


def ready_behind_its_back(
    judge: Callable[..., None], heartbeats: Heartbeats, record: NodeRecord, step: Step, **named: Any
) -> None:
    if record.status is NodeStatus.DRAINING:
        record.status = NodeStatus.READY
    judge(heartbeats, record, step, **named)


def same_epoch(
    begin: Callable[..., None], sessions: Registrations, record: NodeRecord, *given: Any, **named: Any
) -> None:
    record.epoch = 0
    begin(sessions, record, *given, **named)


def first_left_out(*given: Any, **named: Any) -> Iterable[Any]:
    return list(_JUDGED(*given, **named))[1:]


def recovering(move: Callable[..., Any], record: NodeRecord, target: NodeStatus, **named: Any) -> Any:
    """Name another reason than the table knows, and let the table not mind."""
    if named["reason_code"] is ReasonCode.HEALTH_CHECKS_PASSED:
        named["reason_code"] = ReasonCode.RECOVERED
    with patch.object(lifecycle, "TRANSITIONS", _WITH_RECOVERY):
        return move(record, target, **named)


def spent_for_nothing(_spend: Callable[..., None], record: NodeRecord, _tokens: object, step: Step) -> None:
    record.tokens = replace(record.tokens, spent=True)
    step.change_node(record)


def no_drain(begin: Callable[..., Any], conversation: Any, now: float) -> Any:
    conversation._drain.end()
    return begin(conversation, now)


_JUDGED = explain.explain_each
_WITH_RECOVERY = {
    **lifecycle.TRANSITIONS,
    (NodeStatus.REGISTERING, NodeStatus.READY): frozenset({ReasonCode.RECOVERED}),
}
CRASHES = (Fault.REGISTRY_CRASH, Fault.CRASH_AT_ACTION)
OF_TWO_SESSIONS = (Fault.TAKEOVER, Fault.CUT_OFF, Fault.POWER_LOSS, Fault.CUT)
REQUESTS = (Fault.DRAIN, Fault.CORDON)
FIGHT = {**codes.CODES, codes.ErrorCode.SESSION_SUPERSEDED: codes.CodeEntry("superseded", Reaction.BACK_OFF)}


def half_kept(save: Callable[..., None], store: MemoryStore, batches: Sequence[Batch]) -> None:
    save(store, [replace(batch, changes=batch.changes[:1]) for batch in batches])


@contextmanager
def sessions_of_any_epoch() -> Iterator[None]:
    """Take a reported session for the last one of its node, whatever the node's document says."""
    with (
        patch.object(takeover, "_is_last", lambda *_: True),
        node_document(registered_on=None)(),
    ):
        yield


def whatever_stands(
    report: Callable[..., None], sessions: ReportedSessions, event: SessionReported, step: Step
) -> None:
    record = sessions._nodes.records.get(event.node_id)
    if record is not None and record.connection is not None:
        sessions._resume(record, event, step)
    else:
        report(sessions, event, step)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule that is broken, where it shows, and the worlds to look in."""

    name: str
    breaks: Invariant
    apply: Patch
    profile: Callable[[int], FaultProfile]


MUTATIONS = (
    Mutation(
        "nodes that are not ready get jobs",
        Invariant.ONLY_READY,
        without(ExclusionReason.STATUS_NOT_READY),
        under(Fault.GPU, Fault.DRAIN),
    ),
    Mutation(
        "nodes that are disconnected get jobs",
        Invariant.ONLY_READY,
        without(ExclusionReason.DISCONNECTED),
        under(Fault.CUT),
    ),
    Mutation(
        "cordoned nodes get jobs",
        Invariant.ONLY_READY,
        without(ExclusionReason.CORDONED),
        under(Fault.CORDON),
    ),
    Mutation(
        "full nodes get jobs",
        Invariant.NO_SLOT_TWICE,
        full_nodes_pass,
        under(Fault.CHANGE, nodes=3),
    ),
    Mutation(
        "claims are not idempotent",
        Invariant.ONE_CLAIM,
        around(ClaimRequests, "claim", claimed_again),
        under(Fault.SCHEDULER_CRASH),
    ),
    Mutation(
        "a claim that ends leaves its memory promised",
        Invariant.RESERVATIONS_ADD_UP,
        method(
            ReservedMemory, "remove", lambda promise, _need: setattr(promise, "claims", promise.claims - 1)
        ),
        under(nodes=3),
    ),
    Mutation(
        "claims never end",
        Invariant.CLAIM_ENDS,
        method(ClaimTable, "due", lambda *_: []),
        under(Fault.SCHEDULER_CRASH),
    ),
    Mutation(
        "GPUs of exclusive claims are free",
        Invariant.EXCLUSIVE_ALONE,
        method(gpu_allocation, "_why_held", lambda *_: None),
        under(nodes=3),
    ),
    Mutation(
        "shared GPUs are given out exclusively",
        Invariant.NEVER_MIXED,
        method(gpu_allocation, "_why_in_use", lambda *_: None),
        under(nodes=3),
    ),
    Mutation(
        "a job for several nodes gets what there is",
        Invariant.GANG_IS_WHOLE,
        around(Dispatch, "_place", first_node_alone),
        under(),
    ),
    Mutation(
        "a claim is released by the id of an earlier one",
        Invariant.SUPERSEDED_CLAIM,
        around(ClaimRequests, "_current", whatever_its_id),
        under(Fault.POWER_LOSS, Fault.AGENT_CRASH, nodes=4),
    ),
    Mutation(
        "what a waiting job has reserved is given away",
        Invariant.NO_STARVATION,
        nothing_reserved,
        under(nodes=3),
    ),
    Mutation(
        "nothing is ever reserved for a waiting job",
        Invariant.NO_STARVATION,
        method(ClaimQueue, "update_reservation", lambda *_: None),
        under(nodes=3),
    ),
    Mutation(
        "the GPUs of a claim are free once it has expired or was lost",
        Invariant.HELD_IS_NOT_GIVEN,
        around(Dispatch, "_occupy", only_while_it_lives),
        under(Fault.AGENT_CRASH, Fault.SCHEDULER_CRASH, nodes=3),
    ),
    Mutation(
        "MIG devices are given out beside their parent",
        Invariant.WHOLE_OR_MIG,
        method(gpu_allocation, "_relatives", lambda _, gpu: (gpu.uuid,)),
        under(Fault.MIG, nodes=3),
    ),
    Mutation(
        "one claim gets whole GPUs and MIG devices",
        Invariant.WHOLE_OR_MIG,
        lambda: patch("gpu_agent.registry.dispatch.dispatch.choose_gpus", of_any_kind),
        under(Fault.MIG, nodes=4),
    ),
    Mutation(
        "cordoned GPUs are claimed",
        Invariant.GPU_CORDON,
        around(gpu_allocation, "_why_held", whatever_is_cordoned),
        under(Fault.GPU_CORDON, nodes=3),
    ),
    Mutation(
        "a failed check of a node counts for nothing",
        Invariant.CHECKS_HOLD,
        around(node_checks, "write", without_failed_checks),
        under(Fault.CHECK, nodes=3),
    ),
    Mutation(
        "GPUs that failed a check are claimed",
        Invariant.CHECKS_HOLD,
        method(Gpus, "set_failed_checks", lambda *_: None),
        under(Fault.CHECK, nodes=3),
    ),
    Mutation(
        "cordons of GPUs are not stored",
        Invariant.DESIRED_STATE_HOLDS,
        node_document(gpu_cordons={}),
        under(*CRASHES, Fault.GPU_CORDON),
    ),
    Mutation(
        "a GPU that two nodes declare is two GPUs",
        Invariant.ONE_GPU,
        method(GpuIdentities, "why_not", lambda *_: None),
        under(Fault.COPIED_GPU, nodes=3),
    ),
    Mutation(
        "claims are not taken back after a restart",
        Invariant.CLAIM_HOLDS,
        around(Documents, "_load", without_claims),
        under(*CRASHES),
    ),
    Mutation(
        "a released claim is not stored",
        Invariant.CLAIM_HOLDS,
        method(Step, "change_claim", lambda *_: None),
        under(*CRASHES),
    ),
    Mutation(
        "drains are not stored",
        Invariant.DESIRED_STATE_HOLDS,
        node_document(drain=None),
        under(*CRASHES, *REQUESTS),
    ),
    Mutation(
        "cordons are not stored",
        Invariant.DESIRED_STATE_HOLDS,
        node_document(cordoned=None),
        under(*CRASHES, *REQUESTS),
    ),
    Mutation(
        "a removed node is not let go on the disk",
        Invariant.DESIRED_STATE_HOLDS,
        around(registry_process, "prepare", without_deletions),
        under(*CRASHES, Fault.FORGET),
    ),
    Mutation(
        "what a heartbeat replaces is not written",
        Invariant.REPORTED_IS_KNOWN,
        method(declaration, "replace_parts", lambda *_: None),
        under(Fault.CHANGE, nodes=3),
    ),
    Mutation(
        "an owner's drain ends with its connection",
        Invariant.OWN_DRAIN_HOLDS,
        around(SessionMachine, "_connected", no_drain),
        under(Fault.CUT, Fault.OWNER),
    ),
    Mutation(
        "the fleet sends before it stores",
        Invariant.STORED_FIRST,
        around(Fleet, "_output", sent_first),
        under(),
    ),
    Mutation(
        "the loop does not wait for the disk",
        Invariant.STORED_FIRST,
        around(FleetLoop, "take", not_waiting),
        under(Fault.SLOW_DISK),
    ),
    Mutation(
        "the store keeps a part of what it is given",
        Invariant.STORE_IS_A_PREFIX,
        around(MemoryStore, "save", half_kept),
        under(Fault.REGISTRY_CRASH),
    ),
    Mutation(
        "a failed save is taken for stored",
        Invariant.STORED_FIRST,
        around(FleetLoop, "_committed", taken_for_stored),
        under(Fault.SAVE_ERROR),
    ),
    Mutation(
        "an outcome that is not known is trusted",
        Invariant.STORED_FIRST,
        around(FleetLoop, "_committed", taken_for_stored),
        under(Fault.SAVE_LATE),
    ),
    Mutation(
        "waiters for a failed save are answered as if it were stored",
        Invariant.STORED_FIRST,
        around(loop_module, "split_answers", answered_anyhow),
        under(Fault.SAVE_ERROR, Fault.HUNG_DISK),
    ),
    Mutation(
        "time decides while the store fails",
        Invariant.NO_BLIND_DECISION,
        around(UnstoredChanges, "fail", time_goes_on),
        under(Fault.HUNG_DISK, Fault.DRAIN, Fault.POWER_LOSS),
    ),
    Mutation(
        "a long outage of the store is no restart",
        Invariant.NO_FALSE_TIMEOUT,
        lambda: patch("gpu_agent.registry.fleet.RESTART_SECONDS", inf),
        under(Fault.HUNG_DISK, Fault.CUT, Fault.AGENT_FREEZE),
    ),
    Mutation(
        "a token whose text was never sent lives on",
        Invariant.NOTHING_UNSENT,
        around(UnstoredChanges, "fail", nothing_is_unsent),
        under(Fault.SAVE_ERROR, Fault.SLOW_DISK, Fault.TOKENS),
    ),
    Mutation(
        "the record of a node that was never acknowledged stays",
        Invariant.NOTHING_UNSENT,
        around(Sessions, "connection_lost", lost_and_not_purged),
        under(Fault.SAVE_ERROR, Fault.SLOW_DISK, Fault.STATE_LOST),
    ),
    Mutation(
        "event ids start again after a restart",
        Invariant.EVENTS_STORED,
        method(RegistryEventLog, "restore", lambda *_: None),
        under(*CRASHES),
    ),
    Mutation(
        "a superseded connection is not dismissed",
        Invariant.SUPERSEDED_IS_IGNORED,
        method(NodeTable, "is_dismissed", lambda *_: False),
        under(Fault.CLONE, Fault.AGENT_CRASH, Fault.SLOW_DISK),
    ),
    Mutation(
        "a second connection stands for a node beside the first",
        Invariant.ONE_SESSION,
        method(NodeTable, "dismiss", lambda *_: None),
        under(Fault.CLONE, Fault.POWER_LOSS),
    ),
    Mutation(
        "connections are numbered without the leader's term",
        Invariant.NEWER_SESSION_STANDS,
        method(registry_process, "number_of", lambda _term, count: count),
        under(Fault.TAKEOVER, Fault.CUT),
    ),
    Mutation(
        "a session is taken with another epoch",
        Invariant.NEWER_SESSION_STANDS,
        sessions_of_any_epoch,
        under(*OF_TWO_SESSIONS, nodes=12),
    ),
    Mutation(
        "a report overrides a newer session",
        Invariant.NEWER_SESSION_STANDS,
        around(ReportedSessions, "report", whatever_stands),
        under(*OF_TWO_SESSIONS, nodes=12),
    ),
    Mutation(
        "no reported session goes on",
        Invariant.NO_NEEDLESS_REGISTRATION,
        method(takeover, "_is_last", lambda *_: False),
        under(Fault.TAKEOVER),
    ),
    Mutation(
        "a registration that is repeated is taken for a first one",
        Invariant.NO_SECOND_NODE,
        method(ReportedSessions, "bind_repeated", lambda *_: None),
        under(Fault.TAKEOVER, Fault.STATE_LOST),
    ),
    Mutation(
        "the deadline of a node does not move when the link to its gateway ends",
        Invariant.NO_FALSE_TIMEOUT,
        method(registration, "extend_timeout", lambda _: None),
        under(Fault.CUT_OFF, Fault.POWER_LOSS),
    ),
    Mutation(
        "heartbeats that repeat the last one count for nothing",
        Invariant.NO_FALSE_TIMEOUT,
        method(Heartbeats, "repeat", lambda *_: None),
        under(Fault.TAKEOVER),
    ),
    Mutation(
        "epochs start again with each registration",
        Invariant.EPOCHS_GROW,
        around(Registrations, "_begin_session", same_epoch),
        under(Fault.CUT),
    ),
    Mutation(
        "the fleet's silence is never the registry's own",
        Invariant.NO_FALSE_TIMEOUT,
        method(silence, "suspect_silent_nodes", lambda *_: []),
        under(Fault.PARTITION, nodes=12),
    ),
    Mutation(
        "a node's timeout is half of what it was given",
        Invariant.NO_FALSE_TIMEOUT,
        around(
            lifecycle,
            "silent_until",
            lambda until, record: until(record) - record.schedule.timeout_seconds / 2,
        ),
        under(Fault.CUT, Fault.AGENT_FREEZE),
    ),
    Mutation(
        "silence is not noticed",
        Invariant.SILENCE_NOTICED,
        method(lifecycle, "silent_until", lambda *_: inf),
        under(Fault.POWER_LOSS),
    ),
    Mutation(
        "a registering node recovers, which the page does not know",
        Invariant.KNOWN_TRANSITION,
        around(lifecycle, "change_status", recovering),
        under(),
    ),
    Mutation(
        "a draining node is made ready behind the table's back",
        Invariant.HISTORY_IN_ORDER,
        around(Heartbeats, "_change_status", ready_behind_its_back),
        under(Fault.DRAIN),
    ),
    Mutation(
        "a node that flaps is ready with its first healthy heartbeats",
        Invariant.FLAPS_ARE_DAMPED,
        lambda: patch.multiple(flapping, is_damped=lambda *_: False, flapping_reason=lambda *_: None),
        under(Fault.GPU, Fault.MODEL, nodes=2),
    ),
    Mutation(
        "a node back from too many silences gets jobs at once",
        Invariant.FLAPS_ARE_DAMPED,
        method(flapping, "flapping_reason", lambda *_: None),
        under(Fault.PARTITION, nodes=6),
    ),
    Mutation(
        "a node's tokens are not stored",
        Invariant.CREDENTIAL_HOLDS,
        node_document(keys={}),
        under(*CRASHES),
    ),
    Mutation(
        "a token that is rotated at once lives on",
        Invariant.CREDENTIAL_HOLDS,
        method(TokenRequests, "_end_node_tokens", lambda *_: None),
        under(Fault.TOKENS),
    ),
    Mutation(
        "the first heartbeat consumes no use",
        Invariant.USES_COUNTED,
        lambda: patch(
            "gpu_agent.registry.heartbeat.consume_join_use",
            lambda *given: spent_for_nothing(token_issuing.consume_join_use, *given),
        ),
        under(Fault.TOKENS, Fault.STATE_LOST),
    ),
    Mutation(
        "an agent that backs off never tries again",
        Invariant.AGENT_MOVES,
        method(ConnectionAttempts, "next_delay", lambda *_, **__: inf),
        under(Fault.CUT),
    ),
    Mutation(
        "healthy heartbeats make no node ready",
        Invariant.COMES_BACK,
        method(Heartbeats, "_promote", lambda *_: None),
        under(),
    ),
    Mutation(
        "the registry does not close the sessions of nodes that it calls offline",
        Invariant.COMES_BACK,
        method(StatusTransitions, "close", lambda *_: None),
        under(Fault.CUT, Fault.SLOW_LINES, Fault.AGENT_FREEZE),
    ),
    Mutation(
        "a superseded agent fights",
        Invariant.NO_PING_PONG,
        lambda: patch.object(codes, "CODES", FIGHT),
        under(Fault.CLONE),
    ),
    Mutation(
        "an explanation leaves a node out",
        Invariant.EVERY_REASON,
        lambda: patch("gpu_agent.registry.dispatch.dispatch.explain_each", first_left_out),
        under(),
    ),
)
