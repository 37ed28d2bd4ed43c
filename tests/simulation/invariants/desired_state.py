"""No acknowledged drain, resume, cordon, uncordon or removal is lost, whatever crashes."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from gpu_agent.registry.actions import Answer, Effect, LogEvent, Output, Refusal, Send
from gpu_agent.registry.events import (
    CordonRequested,
    DrainRequested,
    Event,
    GpuCordonRequested,
    HeartbeatReceived,
    RegistrationReceived,
    RemovalRequested,
    ResumeRequested,
)
from gpu_agent.server.effects import Executable
from gpu_agent.session.types import State
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, ObservedAgent, Observer, hold

# The value that a requester was promised, while some requests are open.
#
# Requests are answered in the order in which they were decided. A request that was not answered may have
# taken effect or not: an outage of the store or a crash of the registry came between.


_Value = TypeVar("_Value")


class PromisedValue(Generic[_Value]):
    """The last acknowledged value of one thing, and what else it may be."""

    def __init__(self, value: _Value) -> None:
        self.settled = value
        self._open: dict[int, _Value] = {}
        self._maybe: list[_Value] = []

    @property
    def possible(self) -> list[_Value]:
        """What it may be without a broken promise."""
        return [self.settled, *self._open.values(), *self._maybe]

    @property
    def is_settled(self) -> bool:
        """True while nothing is open."""
        return not self._open and not self._maybe

    def asked(self, ref: int, value: _Value) -> None:
        """A request for another value arrived."""
        self._open[ref] = value

    def acknowledged(self, ref: int) -> None:
        """It was acknowledged: every request before it is overruled."""
        if ref in self._open:
            self.settled = self._open.pop(ref)
            self._maybe.clear()

    def refused(self, ref: int) -> None:
        """It was refused."""
        self._open.pop(ref, None)

    def unanswered(self, ref: int) -> None:
        """The outcome is not known: it may be so, or not."""
        if ref in self._open:
            self._maybe.append(self._open.pop(ref))

    def lost(self) -> None:
        """The registry crashed: no answer will come."""
        self._maybe += self._open.values()
        self._open.clear()

    def found(self, value: _Value) -> None:
        """A new process shows which it was."""
        self.settled = value
        self._maybe.clear()


Desired = tuple[bool, str | None]
"""Whether an operator wants it drained, and why it is cordoned."""

_NONE: Desired = (False, None)


class DesiredStateInvariants(Observer):
    """Keeps account of what operators were promised."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.drains: dict[str, PromisedValue[bool]] = {}
        self.cordons: dict[str, PromisedValue[str | None]] = {}
        self.gpu_cordons: dict[tuple[str, str], PromisedValue[str | None]] = {}
        """By node and UUID."""
        self._removed: set[str] = set()
        """Nodes whose removal was acknowledged, until they register again."""
        self._removals: dict[int, str] = {}

    def decided(self, event: Event | None, output: Output) -> None:
        if output.immediate:
            return  # it was refused at once
        match event:
            case HeartbeatReceived():
                return
            case DrainRequested(ref=ref, node_id=node_id):
                self._drain(node_id).asked(ref, True)  # noqa: FBT003 - the value itself
            case ResumeRequested(ref=ref, node_id=node_id):
                self._drain(node_id).asked(ref, False)  # noqa: FBT003 - the value itself
            case CordonRequested(ref=ref, node_id=node_id, reason=reason):
                self._cordon(node_id).asked(ref, reason)
            case GpuCordonRequested(ref=ref, node_id=node_id, uuid=uuid, reason=reason):
                self.gpu_cordons.setdefault((node_id, uuid), PromisedValue(None)).asked(ref, reason)
            case RemovalRequested(ref=ref, node_id=node_id):
                for gpu_cordon in self._gpu_cordons_on(node_id).values():
                    gpu_cordon.asked(ref, None)
                self._drain(node_id).asked(ref, False)  # noqa: FBT003 - the value itself
                self._cordon(node_id).asked(ref, None)
                self._removals[ref] = node_id
            case RegistrationReceived():
                self._registered(output.effects)
            case _:
                pass
        self._look(output.effects)

    def executed(self, effect: Executable) -> None:
        if not isinstance(effect, Answer):
            return
        refused = isinstance(effect.result, Refusal)
        busy = isinstance(effect.result, Refusal) and effect.result.code == ErrorCode.REGISTRY_BUSY
        for promised in self._all():
            if busy:
                promised.unanswered(effect.ref)
            elif refused:
                promised.refused(effect.ref)
            else:
                promised.acknowledged(effect.ref)
        node_id = self._removals.pop(effect.ref, None)
        if node_id is not None and not refused:
            self._removed.add(node_id)

    def crashed(self) -> None:
        self._removals.clear()
        for promised in self._all():
            promised.lost()

    def restored(self, loaded: Loaded) -> None:
        self.check_all()
        for node_id in self.drains:
            self.drains[node_id].found(self._is(node_id)[0])
        for node_id in self.cordons:
            self.cordons[node_id].found(self._is(node_id)[1])
        for node_id, uuid in self.gpu_cordons:
            self.gpu_cordons[node_id, uuid].found(self._gpu_is(node_id, uuid))

    def check_all(self) -> None:
        of_gpus = dict.fromkeys(node_id for node_id, _ in self.gpu_cordons)
        for node_id in {**self.drains, **self.cordons, **of_gpus}:
            self._check(node_id)
        for node_id in self._removed:
            gone = self._cluster.fleet.node(node_id) is None
            hold(
                Invariant.DESIRED_STATE_HOLDS, gone, f"{node_id} was removed, and is back without registering"
            )

    def must_stay_empty(self, node_id: str) -> bool:
        """Say whether no new job may go there, by what operators were promised."""
        drain, cordon = self.drains.get(node_id), self.cordons.get(node_id)
        drained = drain is not None and drain.is_settled and drain.settled
        cordoned = cordon is not None and cordon.is_settled and cordon.settled is not None
        return drained or cordoned

    def is_cordoned(self, node_id: str, uuid: str | None) -> bool:
        """Say whether no new claim may get a GPU, by what operators were promised."""
        cordon = self.gpu_cordons.get((node_id, uuid or ""))
        return cordon is not None and cordon.is_settled and cordon.settled is not None

    def _registered(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, NodeRegisterAck):
                node_id = effect.message.node_id
                self._removed.discard(node_id)
                self._removals = {ref: one for ref, one in self._removals.items() if one != node_id}

    def _look(self, effects: Sequence[Effect]) -> None:
        """Look at the nodes that something was decided about."""
        for effect in effects:
            if isinstance(effect, LogEvent) and "node_id" in effect.fields:
                self._check(str(effect.fields["node_id"]))

    def _check(self, node_id: str) -> None:
        drained, cordoned = self._is(node_id)
        drain, cordon = self.drains.get(node_id), self.cordons.get(node_id)
        if drain is not None and drained not in drain.possible:
            hold(
                Invariant.DESIRED_STATE_HOLDS,
                holds=False,
                detail=f"{node_id} drained {drained}: {drain.possible}",
            )
        if cordon is not None and cordoned not in cordon.possible:
            hold(
                Invariant.DESIRED_STATE_HOLDS,
                holds=False,
                detail=f"{node_id} cordoned {cordoned}: {cordon.possible}",
            )
        for uuid, gpu_cordon in self._gpu_cordons_on(node_id).items():
            reason = self._gpu_is(node_id, uuid)
            if reason not in gpu_cordon.possible:
                hold(
                    Invariant.DESIRED_STATE_HOLDS,
                    holds=False,
                    detail=f"{uuid} of {node_id} cordoned {reason}: {gpu_cordon.possible}",
                )

    def _is(self, node_id: str) -> Desired:
        record = self._cluster.fleet.node(node_id)
        if record is None:
            return _NONE
        return record.desired.drain is not None and record.desired.drain.by_operator, record.desired.cordoned

    def _gpu_is(self, node_id: str, uuid: str) -> str | None:
        record = self._cluster.fleet.node(node_id)
        cordon = None if record is None else record.desired.gpu_cordons.get(uuid)
        return None if cordon is None else cordon.reason

    def _gpu_cordons_on(self, node_id: str) -> dict[str, PromisedValue[str | None]]:
        return {uuid: one for (of_node, uuid), one in self.gpu_cordons.items() if of_node == node_id}

    def _all(self) -> Iterator[PromisedValue[bool] | PromisedValue[str | None]]:
        yield from self.drains.values()
        yield from self.cordons.values()
        yield from self.gpu_cordons.values()

    def _drain(self, node_id: str) -> PromisedValue[bool]:
        return self.drains.setdefault(node_id, PromisedValue(_NONE[0]))

    def _cordon(self, node_id: str) -> PromisedValue[str | None]:
        return self.cordons.setdefault(node_id, PromisedValue(_NONE[1]))


# A drain that an owner requested: the agent maintains it until its owner or an operator ends it.


_ENDING = (State.LEAVING, State.STOPPED)
"""An agent that stops drains its machine anyhow."""


class OwnDrainInvariants(Observer):
    """Keeps account of what owners asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._since: dict[str, tuple[int | None, float]] = {}
        """The drain that was asked for last of each agent, and when it was first seen."""
        self._taken_back: dict[str, float] = {}
        """When an operator last did, by node."""
        self._over: dict[str, int] = {}
        """The drain of each agent that an operator took back: it stays so under another id."""

    def decided(self, event: Event | None, output: Output) -> None:
        if isinstance(event, ResumeRequested | RemovalRequested) and not output.immediate:
            self._taken_back[event.node_id] = self._cluster.world.now

    def agent_moved(self, agent: ObservedAgent) -> None:
        if agent.own_drain is None or agent.machine is None:
            return
        drain, since = self._since.get(agent.name, (None, 0.0))
        if drain != agent.own_drain:
            since = self._cluster.world.now
            self._since[agent.name] = agent.own_drain, since
        view = agent.machine.snapshot
        if view.drain_reason is not None or view.state in _ENDING:
            return
        if self._taken_back.get(view.node_id or "", -1.0) >= since:
            self._over[agent.name] = agent.own_drain
        family = [one for one in self._cluster.agents if one.family == agent.family]
        twins = len(family) > 1  # registers under the same id
        holds = twins or self._over.get(agent.name) == agent.own_drain
        hold(
            Invariant.OWN_DRAIN_HOLDS,
            holds,
            f"{agent.name} forgot its drain:\n{agent.machine.transition_log()}",
        )
