"""How rules of the product are broken on purpose: each replaces one thing for as long as it is applied."""
# ruff: noqa: ANN401 - what is replaced is passed through as it is

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from gpu_agent.registry import documents, lifecycle
from gpu_agent.registry.actions import Action, Save
from gpu_agent.registry.beats import Beats
from gpu_agent.registry.dispatch import explain, filters, index
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.saves import Saves
from gpu_agent.registry.sessions import Sessions
from gpu_agent.registry.step import Step
from gpu_agent.registry.unkept import UnkeptQueue
from gpu_agent.server.loop import FleetLoop
from gpu_agent.store.base import Batch
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire import codes
from gpu_agent.wire.codes import NodeStatus, Reaction, ReasonCode
from tests.simulation.climate import Climate, Trouble, storm

Patch = Callable[[], AbstractContextManager[Any]]


def under(*troubles: Trouble, nodes: int = 8, auth_off: bool = False) -> Callable[[int], Climate]:
    return lambda seed: storm(seed, *troubles, nodes=nodes, auth_off=auth_off)


def without(*reasons: Exclusion) -> Patch:
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


def method(owner: object, name: str, replacement: Callable[..., Any]) -> Patch:
    return lambda: patch.object(owner, name, replacement)


def around(owner: object, name: str, remake: Callable[..., Any]) -> Patch:
    """Replace something by what is made of it."""
    true = getattr(owner, name)
    return lambda: patch.object(owner, name, lambda *given, **named: remake(true, *given, **named))


def node_document(**parts: object) -> Patch:
    """Keep a node's document without some of its parts."""
    return around(documents, "of_node", lambda of_node, *given: {**of_node(*given), **parts})


def told_first(sealed: Callable[..., list[Action]], saves: Saves, step: Step) -> list[Action]:
    actions = sealed(saves, step)
    return [
        *(one for one in actions if not isinstance(one, Save)),
        *(one for one in actions if isinstance(one, Save)),
    ]


def not_waiting(act: Callable[..., None], loop: FleetLoop, actions: Sequence[Action]) -> None:
    act(loop, actions)
    loop._courses[-1].waits = False
    loop._carry()


def claimed_anew(claim: Callable[..., Any], dispatch: Dispatch, job: Any, now: float) -> Any:
    dispatch.release(job.job_id)
    return claim(dispatch, job, now)


def ready_behind_its_back(
    judge: Callable[..., None], beats: Beats, record: NodeRecord, step: Step, **named: Any
) -> None:
    if record.status is NodeStatus.DRAINING:
        record.status = NodeStatus.READY
    judge(beats, record, step, **named)


def same_epoch(
    begin: Callable[..., None], sessions: Sessions, record: NodeRecord, *given: Any, **named: Any
) -> None:
    record.epoch = 0
    begin(sessions, record, *given, **named)


def first_left_out(*given: Any, **named: Any) -> Iterable[Any]:
    return list(_JUDGED(*given, **named))[1:]


def recovering(move: Callable[..., Any], record: NodeRecord, target: NodeStatus, **named: Any) -> Any:
    """Name another reason than the table knows, and let the table not mind."""
    if named["reason_code"] is ReasonCode.HEALTH_CHECKS_PASSED:
        named["reason_code"] = ReasonCode.RECOVERED
    with patch.object(lifecycle, "ARROWS", _WITH_RECOVERY):
        return move(record, target, **named)


def spent_for_nothing(_spend: Callable[..., None], record: NodeRecord, _tokens: object, step: Step) -> None:
    record.keys = replace(record.keys, spent=True)
    step.keep_node(record)


def last_first(take: Callable[..., Any], queue: UnkeptQueue) -> Any:
    keys, told = take(queue)
    return keys, told[::-1]


def everything_back(
    parts_of: Callable[..., dict[str, Any]], before: NodeRecord, *given: Any
) -> dict[str, Any]:
    back = {
        name: getattr(before, name)
        for name in ("registration", "labels", "ready_models", "max_concurrent_jobs")
    }
    return {**parts_of(before, *given), **back}


def no_drain(begin: Callable[..., Any], conversation: Any, now: float) -> Any:
    conversation._drain.lift()
    return begin(conversation, now)


_JUDGED = explain.judged
_WITH_RECOVERY = {
    **lifecycle.ARROWS,
    (NodeStatus.REGISTERING, NodeStatus.READY): frozenset({ReasonCode.RECOVERED}),
}
CRASHES = (Trouble.REGISTRY_CRASH, Trouble.CRASH_AT_ACTION)
WISHES = (Trouble.DRAIN, Trouble.CORDON)
FIGHT = {**codes.CODES, codes.ErrorCode.SESSION_SUPERSEDED: codes.CodeEntry("superseded", Reaction.BACK_OFF)}


def half_kept(save: Callable[..., None], store: MemoryStore, batches: Sequence[Batch]) -> None:
    save(store, [replace(batch, changes=batch.changes[:1]) for batch in batches])
