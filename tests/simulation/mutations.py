"""Rules of the product broken on purpose, one at a time, each with the promise that is seen to break."""
# ruff: noqa: ANN401 - what is replaced is passed through as it is

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from unittest.mock import patch

from gpu_agent.registry import deadlines, documents, flapping, lifecycle, proving, reversal, silence
from gpu_agent.registry.actions import Action, Save
from gpu_agent.registry.beats import Beats
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch import explain, filters, index
from gpu_agent.registry.dispatch.claims import Claims
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.memory import Promise
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.issuing import Issuing
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.saves import Saves
from gpu_agent.registry.sessions import Sessions
from gpu_agent.registry.step import Step
from gpu_agent.registry.undo import Undo
from gpu_agent.registry.unkept import UnkeptQueue
from gpu_agent.registry.verdicts import Verdicts
from gpu_agent.server import clerk
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.loop import FleetLoop
from gpu_agent.session.attempts import Attempts
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire import codes
from gpu_agent.wire.codes import NodeStatus, Reaction, ReasonCode
from tests.simulation.broken import Invariant
from tests.simulation.climate import Climate, Trouble, storm

Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule that is broken, where it shows, and the worlds to look in."""

    name: str
    breaks: Invariant
    apply: Patch
    climate: Callable[[int], Climate]


def _in(*troubles: Trouble, nodes: int = 8, auth_off: bool = False) -> Callable[[int], Climate]:
    return lambda seed: storm(seed, *troubles, nodes=nodes, auth_off=auth_off)


def _without(*reasons: Exclusion) -> Patch:
    """Let dispatch overlook these reasons."""
    left = tuple(one for one in filters.FILTERS if one[0] not in reasons)
    barred = filters.barred

    def overlooking(record: NodeRecord, in_flight: int, limits: Any) -> Exclusion | None:
        found = barred(record, in_flight, limits)
        return None if found in reasons else found

    def apply() -> AbstractContextManager[Any]:
        return patch.multiple(index, barred=overlooking, exclusion=_judging(left))

    return apply


def _judging(left: Sequence[tuple[Exclusion, Any]]) -> Callable[..., Any]:
    exclusion = filters.exclusion

    def judge(view: Any, demand: Any) -> Any:
        with patch.object(filters, "FILTERS", left):
            return exclusion(view, demand)

    return judge


def _method(owner: object, name: str, replacement: Callable[..., Any]) -> Patch:
    return lambda: patch.object(owner, name, replacement)


def _around(owner: object, name: str, around: Callable[..., Any]) -> Patch:
    """Replace something by what is made of it."""
    true = getattr(owner, name)
    return lambda: patch.object(owner, name, lambda *given, **named: around(true, *given, **named))


def _node_document(**parts: object) -> Patch:
    """Keep a node's document without some of its parts."""
    return _around(documents, "of_node", lambda of_node, *given: {**of_node(*given), **parts})


def _told_first(sealed: Callable[..., list[Action]], saves: Saves, step: Step) -> list[Action]:
    actions = sealed(saves, step)
    return [
        *(one for one in actions if not isinstance(one, Save)),
        *(one for one in actions if isinstance(one, Save)),
    ]


def _not_waiting(act: Callable[..., None], loop: FleetLoop, actions: Sequence[Action]) -> None:
    act(loop, actions)
    loop._courses[-1].waits = False
    loop._carry()


def _claimed_anew(claim: Callable[..., Any], dispatch: Dispatch, job: Any, now: float) -> Any:
    dispatch.release(job.job_id)
    return claim(dispatch, job, now)


def _ready_behind_its_back(
    judge: Callable[..., None], beats: Beats, record: NodeRecord, step: Step, **named: Any
) -> None:
    if record.status is NodeStatus.DRAINING:
        record.status = NodeStatus.READY
    judge(beats, record, step, **named)


def _same_epoch(
    begin: Callable[..., None], sessions: Sessions, record: NodeRecord, *given: Any, **named: Any
) -> None:
    record.epoch = 0
    begin(sessions, record, *given, **named)


def _first_left_out(*given: Any, **named: Any) -> Iterable[Any]:
    return list(_JUDGED(*given, **named))[1:]


def _recovering(move: Callable[..., Any], record: NodeRecord, target: NodeStatus, **named: Any) -> Any:
    """Name another reason than the table knows, and let the table not mind."""
    if named["reason_code"] is ReasonCode.HEALTH_CHECKS_PASSED:
        named["reason_code"] = ReasonCode.RECOVERED
    with patch.object(lifecycle, "ARROWS", _WITH_RECOVERY):
        return move(record, target, **named)


def _spent_for_nothing(_spend: Callable[..., None], record: NodeRecord, _tokens: object, step: Step) -> None:
    record.keys = replace(record.keys, spent=True)
    step.keep_node(record)


def _last_first(take: Callable[..., Any], queue: UnkeptQueue) -> Any:
    keys, told = take(queue)
    return keys, told[::-1]


def _everything_back(
    parts_of: Callable[..., dict[str, Any]], before: NodeRecord, *given: Any
) -> dict[str, Any]:
    back = {
        name: getattr(before, name)
        for name in ("registration", "labels", "ready_models", "max_concurrent_jobs")
    }
    return {**parts_of(before, *given), **back}


_JUDGED = explain.judged
_WITH_RECOVERY = {
    **lifecycle.ARROWS,
    (NodeStatus.REGISTERING, NodeStatus.READY): frozenset({ReasonCode.RECOVERED}),
}
_CRASHES = (Trouble.REGISTRY_CRASH, Trouble.CRASH_AT_ACTION)
_WISHES = (Trouble.DRAIN, Trouble.CORDON)
_FIGHT = {**codes.CODES, codes.ErrorCode.SESSION_SUPERSEDED: codes.CodeEntry("superseded", Reaction.BACK_OFF)}


def _half_kept(save: Callable[..., None], store: MemoryStore, batches: Sequence[Batch]) -> None:
    save(store, [replace(batch, changes=batch.changes[:1]) for batch in batches])


MUTATIONS = (
    Mutation(
        "nodes that are not ready get jobs",
        Invariant.ONLY_READY,
        _without(Exclusion.STATUS_NOT_READY),
        _in(Trouble.GPU, Trouble.DRAIN),
    ),
    Mutation(
        "nodes that are disconnected get jobs",
        Invariant.ONLY_READY,
        _without(Exclusion.DISCONNECTED),
        _in(Trouble.CUT),
    ),
    Mutation(
        "cordoned nodes get jobs", Invariant.ONLY_READY, _without(Exclusion.CORDONED), _in(Trouble.CORDON)
    ),
    Mutation(
        "full nodes get jobs",
        Invariant.NO_PLACE_TWICE,
        _without(Exclusion.CAPACITY_EXCEEDED),
        _in(Trouble.CHANGE, nodes=3),
    ),
    Mutation(
        "claims are not idempotent",
        Invariant.ONE_CLAIM,
        _around(Dispatch, "claim", _claimed_anew),
        _in(Trouble.SCHEDULER_CRASH),
    ),
    Mutation(
        "a claim that ends leaves its memory promised",
        Invariant.PROMISES_ADD_UP,
        _method(Promise, "end", lambda promise, _need: setattr(promise, "claims", promise.claims - 1)),
        _in(nodes=3),
    ),
    Mutation(
        "claims never end",
        Invariant.CLAIM_ENDS,
        _method(Claims, "end_due", lambda *_: []),
        _in(Trouble.SCHEDULER_CRASH),
    ),
    Mutation(
        "claims are not taken back after a restart",
        Invariant.CLAIM_KEPT,
        _method(Claiming, "restore", lambda *_: True),
        _in(*_CRASHES),
    ),
    Mutation(
        "what is given back is not kept",
        Invariant.CLAIM_KEPT,
        _method(Step, "keep_claim", lambda *_: None),
        _in(*_CRASHES),
    ),
    Mutation(
        "drains are not kept", Invariant.WISH_KEPT, _node_document(drain=None), _in(*_CRASHES, *_WISHES)
    ),
    Mutation(
        "cordons are not kept", Invariant.WISH_KEPT, _node_document(cordoned=None), _in(*_CRASHES, *_WISHES)
    ),
    Mutation(
        "a removed node is not let go on the disk",
        Invariant.WISH_KEPT,
        _around(
            clerk.Clerk,
            "_dated",
            lambda dated, *given: [one for one in dated(*given) if one.document is not None],
        ),
        _in(*_CRASHES, Trouble.FORGET),
    ),
    Mutation(
        "what could not be kept is not undone",
        Invariant.WISH_KEPT,
        _method(Undo, "put_back", lambda *_, **__: None),
        _in(Trouble.SAVE_ERROR, *_WISHES),
    ),
    Mutation(
        "what is undone takes beats with it",
        Invariant.TOLD_IS_KNOWN,
        _around(reversal, "parts_of_node", _everything_back),
        _in(Trouble.SAVE_ERROR, Trouble.SLOW_DISK, Trouble.CHANGE, *_WISHES, nodes=3),
    ),
    Mutation(
        "the fleet tells before it saves", Invariant.SAVED_FIRST, _around(Saves, "sealed", _told_first), _in()
    ),
    Mutation(
        "the loop does not wait for the disk",
        Invariant.SAVED_FIRST,
        _around(FleetLoop, "act", _not_waiting),
        _in(Trouble.SLOW_DISK),
    ),
    Mutation(
        "the store keeps a part of what it is given",
        Invariant.STORE_IS_A_PREFIX,
        _around(MemoryStore, "save", _half_kept),
        _in(Trouble.REGISTRY_CRASH),
    ),
    Mutation(
        "verdicts that waited are told backwards",
        Invariant.HISTORY_IN_ORDER,
        _around(UnkeptQueue, "take", _last_first),
        _in(Trouble.DISK_FULL, Trouble.GPU, Trouble.CUT),
    ),
    Mutation(
        "events are numbered anew after a restart",
        Invariant.EVENTS_KEPT,
        _method(Chronicle, "restore", lambda *_: None),
        _in(*_CRASHES),
    ),
    Mutation(
        "a superseded connection is not dismissed",
        Invariant.SUPERSEDED_IS_DEAF,
        _method(Roster, "dismissed", lambda *_: False),
        _in(Trouble.CLONE, Trouble.AGENT_CRASH, Trouble.SLOW_DISK),
    ),
    Mutation(
        "a second connection stands for a node beside the first",
        Invariant.ONE_SESSION,
        _method(Roster, "dismiss", lambda *_: None),
        _in(Trouble.CLONE, Trouble.POWER_LOSS),
    ),
    Mutation(
        "epochs begin anew with each registration",
        Invariant.EPOCHS_GROW,
        _around(Sessions, "_begin", _same_epoch),
        _in(Trouble.CUT),
    ),
    Mutation(
        "the fleet's silence is never the registry's own",
        Invariant.NO_FALSE_VERDICT,
        _method(silence, "suspected", lambda *_: []),
        _in(Trouble.PARTITION, nodes=12),
    ),
    Mutation(
        "a node's timeout is half of what it was given",
        Invariant.NO_FALSE_VERDICT,
        _around(deadlines, "silent_until", lambda until, record: until(record) - record.timeout_seconds / 2),
        _in(Trouble.CUT, Trouble.AGENT_FREEZE),
    ),
    Mutation(
        "silence is not noticed",
        Invariant.SILENCE_NOTICED,
        _method(deadlines, "silent_until", lambda *_: inf),
        _in(Trouble.POWER_LOSS),
    ),
    Mutation(
        "a registering node recovers, which the page does not know",
        Invariant.KNOWN_ARROW,
        _around(lifecycle, "move", _recovering),
        _in(),
    ),
    Mutation(
        "a draining node is made ready behind the table's back",
        Invariant.HISTORY_IN_ORDER,
        _around(Beats, "_judge", _ready_behind_its_back),
        _in(Trouble.DRAIN),
    ),
    Mutation(
        "a node that flaps is ready as soon as it beats well",
        Invariant.FLAPS_ARE_DAMPED,
        lambda: patch.multiple(flapping, is_damped=lambda *_: False, holds=lambda *_: None),
        _in(Trouble.GPU, Trouble.MODEL, nodes=2),
    ),
    Mutation(
        "a node back from too many silences gets jobs at once",
        Invariant.FLAPS_ARE_DAMPED,
        _method(flapping, "holds", lambda *_: None),
        _in(Trouble.PARTITION, nodes=2),
    ),
    Mutation(
        "a node's tokens are not kept",
        Invariant.CREDENTIAL_KEPT,
        _node_document(keys={}),
        _in(*_CRASHES),
    ),
    Mutation(
        "a token that is rotated at once lives on",
        Invariant.CREDENTIAL_KEPT,
        _method(Issuing, "_end_keys", lambda *_: None),
        _in(Trouble.TOKENS),
    ),
    Mutation(
        "the first beat spends no use",
        Invariant.USES_COUNTED,
        lambda: patch(
            "gpu_agent.registry.beats.spend", lambda *given: _spent_for_nothing(proving.spend, *given)
        ),
        _in(Trouble.TOKENS, Trouble.STATE_LOST),
    ),
    Mutation(
        "an agent that backs off never tries again",
        Invariant.AGENT_MOVES,
        _method(Attempts, "next_delay", lambda *_, **__: inf),
        _in(Trouble.CUT),
    ),
    Mutation(
        "healthy beats make no node ready",
        Invariant.COMES_BACK,
        _method(Beats, "_promote", lambda *_: None),
        _in(),
    ),
    Mutation(
        "the registry does not close the sessions of nodes that it calls offline",
        Invariant.COMES_BACK,
        _method(Verdicts, "close", lambda *_: None),
        _in(Trouble.CUT, Trouble.SLOW_LINES, Trouble.AGENT_FREEZE),
    ),
    Mutation(
        "a superseded agent fights",
        Invariant.NO_PING_PONG,
        lambda: patch.object(codes, "CODES", _FIGHT),
        _in(Trouble.CLONE),
    ),
    Mutation(
        "an explanation leaves a node out",
        Invariant.EVERY_REASON,
        lambda: patch("gpu_agent.registry.dispatch.dispatch.judged", _first_left_out),
        _in(),
    ),
)
