"""A takeover goes unnoticed: no node registers again for it, and of two sessions the newer one stands.

Which connection is the newer one the gateways know by themselves, not by the registry's numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import CloseConnection, DocumentKind, Effect, Output, Send
from gpu_agent.registry.events import Event, RegistrationReceived, RotationRequested, SessionReported
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.status import may_stay
from gpu_agent.store.base import Batch
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeControl, NodeError, NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold


@dataclass(frozen=True, slots=True)
class _Registered:
    """A registration that was accepted."""

    node_id: str
    place: int
    """Of its connection, in the order in which connections were opened."""
    epoch: int


class TakeoverInvariants(Observer):
    """Keeps account of which connection registered which node last."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._newest: dict[str, _Registered] = {}
        """By node, as the registry that leads has decided."""
        self._stored: dict[str, _Registered] = {}
        self._of_place: dict[int, _Registered] = {}
        """By connection: the registration on it that was stored last."""
        self._waiting: dict[int, _Registered] = {}
        """By save."""
        self._ended: set[str] = set()
        """Nodes whose tokens an operator has ended or rotated since they received one."""

    def decided(self, event: Event | None, output: Output) -> None:
        if self._cluster.gateways is None:
            return
        for change in output.changes:
            if change.kind is DocumentKind.NODE and change.document is None:
                self._newest.pop(change.key, None)
        if isinstance(event, RotationRequested):
            self._ended.add(event.node_id)
        place = self._place()
        if isinstance(event, RegistrationReceived) and place is not None:
            self._registered(place, output)
        elif isinstance(event, SessionReported) and place is not None:
            self._reported(event, place, output.effects)

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for output in outputs:
            for change in output.changes:
                if change.kind is DocumentKind.NODE and change.document is None:
                    self._stored.pop(change.key, None)
            one = self._waiting.pop(output.number or 0, None)
            if one is not None:
                self._stored[one.node_id] = self._of_place[one.place] = one

    def crashed(self) -> None:
        self._waiting.clear()
        self._newest = dict(self._stored)

    def _place(self) -> int | None:
        gateways, speaking = self._cluster.gateways, self._cluster.registry.speaking
        session = None if gateways is None or speaking is None else gateways.sessions.get(speaking)
        return None if session is None else session.place

    def _registered(self, place: int, output: Output) -> None:
        for effect in output.effects:
            if not isinstance(effect, Send):
                continue
            message = effect.message
            if isinstance(message, NodeError) and message.code == ErrorCode.SESSION_SUPERSEDED:
                newest = self._newest.get(message.node_id or "")
                is_refused = not any(isinstance(one, Send) and _is_ack(one) for one in output.effects)
                older = newest is None or place <= newest.place
                detail = f"{message.node_id} is refused on its newest connection, {place}: {newest}"
                hold(Invariant.NEWER_SESSION_STANDS, older or not is_refused, detail)
            elif isinstance(message, NodeRegisterAck):
                self._accepted(_Registered(message.node_id, place, message.session_epoch or 0), output)

    def _accepted(self, one: _Registered, output: Output) -> None:
        before = self._of_place.get(one.place)
        second = before is not None and before.node_id != one.node_id and before.node_id in self._newest
        hold(Invariant.NO_SECOND_NODE, not second, f"{before} was stored, and now {one} is accepted")
        self._newest[one.node_id] = one
        if output.number is not None:
            self._waiting[output.number] = one
        self._ended.discard(one.node_id)

    def _reported(self, event: SessionReported, place: int, effects: Sequence[Effect]) -> None:
        record, newest = self._cluster.fleet.node(event.node_id), self._newest.get(event.node_id)
        if record is not None and record.connection == event.connection:
            newer = newest is not None and newest.place > place
            hold(Invariant.NEWER_SESSION_STANDS, not newer, f"{event} stands, and not {newest}")
        is_last = newest is not None and newest.place == place
        if is_last and event.is_complete and _ends(event.connection, effects):
            hold(Invariant.NO_NEEDLESS_REGISTRATION, self._may_end(record), f"{event} led to {effects}")

    def _may_end(self, record: NodeRecord | None) -> bool:
        """Say whether the registry may end a session that is a node's last one, or have it register."""
        if record is None or record.node_id in self._ended:
            return True
        return record.status is NodeStatus.OFFLINE and not may_stay(record)


def _ends(connection: int, effects: Sequence[Effect]) -> bool:
    return any(
        (isinstance(one, CloseConnection) and one.connection == connection)
        or (isinstance(one, Send) and one.connection == connection and isinstance(one.message, NodeControl))
        for one in effects
    )


def _is_ack(send: Send) -> bool:
    return isinstance(send.message, NodeRegisterAck)
