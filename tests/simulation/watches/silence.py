"""S-06: who is silent is offline in bounded time, unless most of the fleet is; who beats never is.

Keeps its own account of what the registry heard of whom, and when.
"""

from collections.abc import Collection, Sequence

from gpu_agent.registry.actions import Action, Send
from gpu_agent.registry.events import BeatArrived, ConnectionLost, Event, RegistrationArrived, SaveFailed
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.silence import FEWEST_NODES
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Watch

_SLACK_SECONDS = 1.0
_SILENT_INTERVALS = 2
_TIMEOUT_INTERVALS = 3


class SilenceWatch(Watch):
    """Watches who is heard."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._heard: dict[str, float] = {}
        self._speaks: dict[int, str] = {}
        """Which connection registered which node."""

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if isinstance(event, BeatArrived):
            self._beat(event, actions)
        elif isinstance(event, RegistrationArrived):
            self._registered(event, actions)
        elif isinstance(event, ConnectionLost):
            self._speaks.pop(event.connection, None)
        elif isinstance(event, SaveFailed):
            self._speaks = {number: one.node_id for number, one in self._scene.fleet._roster.bound.items()}
        elif event is None:
            self._check_verdicts()

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        now = self._scene.world.now
        self._heard = {record.node_id: now for record in self._scene.records()}
        self._speaks = {}

    def glance(self) -> None:
        now = self._scene.world.now
        scan = self._scene.climate.thresholds.scan_interval_seconds
        for record in self._scene.records():
            if record.status is NodeStatus.OFFLINE:
                continue
            timeout = self._timeout(record) * (2 if record.suspected else 1)
            silent = now - self._heard[record.node_id]
            if silent > timeout + scan + _SLACK_SECONDS:
                detail = f"{record.node_id} is {record.status} after {silent:.1f} s, timeout {timeout:g} s"
                hold(Invariant.SILENCE_NOTICED, holds=False, detail=detail)

    def _beat(self, event: BeatArrived, actions: Sequence[Action]) -> None:
        """Whoever beats is heard, unless the session is about to be told that its token has ended."""
        node_id = self._speaks.get(event.connection)
        dismissed = event.connection not in self._scene.fleet._roster.bound
        if node_id == event.message.node_id and not dismissed and not _refused(actions, event.connection):
            self._heard[node_id] = self._scene.world.now

    def _registered(self, event: RegistrationArrived, actions: Sequence[Action]) -> None:
        """Whoever registers is heard, even if the disk has no room for it."""
        now = self._scene.world.now
        record = self._scene.fleet.node(event.message.node_id or "")
        if record is not None and record.heard_at == now:
            self._heard[record.node_id] = now
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, NodeRegisterAck):
                node_id = action.message.node_id
                for number in [one for one, holder in self._speaks.items() if holder == node_id]:
                    del self._speaks[number]
                self._speaks[event.connection] = node_id
                self._heard[node_id] = now

    def _check_verdicts(self) -> None:
        """Look at each node that was just called silent."""
        now = self._scene.world.now
        timed_out = {
            record.node_id: record
            for record in self._scene.records()
            if record.since == now and record.reason_code is ReasonCode.HEARTBEAT_TIMEOUT
        }
        if not timed_out:
            return
        patience = 2 if self._most_are_silent(timed_out) else 1
        for node_id, record in timed_out.items():
            silent, timeout = now - self._heard[node_id], self._timeout(record)
            if silent < patience * timeout - 1e-6:
                detail = f"{node_id} was heard {silent:.1f} s ago; {patience} x its timeout {timeout:g} s"
                hold(Invariant.NO_FALSE_VERDICT, holds=False, detail=detail)

    def _most_are_silent(self, timed_out: Collection[str]) -> bool:
        """Say whether, before these verdicts, the registry had reason to suspect itself (§4)."""
        now = self._scene.world.now
        live = [
            record
            for record in self._scene.records()
            if record.status is not NodeStatus.OFFLINE or record.node_id in timed_out
        ]
        silent = sum(
            now - self._heard[record.node_id] > _SILENT_INTERVALS * record.interval_seconds for record in live
        )
        return len(live) >= FEWEST_NODES and silent * 2 > len(live)

    def _timeout(self, record: NodeRecord) -> float:
        """A node's timeout, by §4; a longer one that it was given before may still hold."""
        least = self._scene.climate.thresholds.heartbeat_timeout_seconds
        return max(least, _TIMEOUT_INTERVALS * record.interval_seconds, record.timeout_seconds)


def _refused(actions: Sequence[Action], connection: int) -> bool:
    return any(
        isinstance(action, Send) and action.connection == connection and isinstance(action.message, NodeError)
        for action in actions
    )
