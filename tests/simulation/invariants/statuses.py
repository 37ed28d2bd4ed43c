"""No transition outside the table of §4, seen from outside: in events, in statuses sent, in histories."""

from collections import deque
from collections.abc import Collection, Sequence
from math import inf

from gpu_agent.registry.actions import STATUS_CHANGED, Effect, LogEvent, Output, Send, SendStatus
from gpu_agent.registry.events import (
    ConnectionLost,
    Event,
    HeartbeatReceived,
    HeartbeatRepeated,
    RegistrationReceived,
    SessionReported,
    StoreFailed,
    StoreRecovered,
)
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.persistence import RESTART_SECONDS
from gpu_agent.registry.timers import FEWEST_NODES
from gpu_agent.server.effects import Executable, PublishEvent
from gpu_agent.store.base import Loaded
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.codes import NODE_SCOPE, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold

GONE = frozenset({"node_removed", "node_purged"})
"""Notes of a record that was let go."""

_LEFT = "heartbeat_timeout unregistered removed"

TRANSITIONS: dict[tuple[str | None, str], frozenset[str]] = {
    arrow: frozenset(reasons.split())
    for arrow, reasons in {
        (None, "registering"): "registered",
        ("registering", "registering"): "registered",
        ("ready", "registering"): "registered",
        ("degraded", "registering"): "registered",
        ("offline", "registering"): "registered resumed",
        ("draining", "registering"): "resumed",
        ("registering", "ready"): "health_checks_passed",
        ("registering", "degraded"): "model_missing gpu_unavailable check_failed warmup_timeout",
        ("ready", "degraded"): "gpu_unavailable model_missing check_failed health_checks_failed flapping",
        ("degraded", "ready"): "recovered",
        ("ready", "draining"): "drain_requested",
        ("degraded", "draining"): "drain_requested",
        ("registering", "offline"): _LEFT,
        ("ready", "offline"): _LEFT,
        ("degraded", "offline"): _LEFT,
        ("draining", "offline"): f"{_LEFT} drain_complete drain_deadline",
    }.items()
}
"""Written from the protocol page once more, not taken from the source: the two must agree."""


class TransitionInvariants(Observer):
    """Watches changes of status."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._logged: dict[str, str] = {}
        """Each node's status by its last move in the log."""

    def executed(self, effect: Executable) -> None:
        if isinstance(effect, SendStatus):
            source = None if effect.previous_status is None else effect.previous_status.value
            _check(effect.node_id, source, effect.status.value, reason=effect.reason_code.value)
        elif isinstance(effect, PublishEvent):
            self._follow(effect.event)

    def restored(self, loaded: Loaded) -> None:
        """A crashed process may have stored transitions without publishing them: the next one has them."""
        self._logged.clear()
        for event in loaded.recent:
            self._follow(event)

    def check_all(self) -> None:
        for record in self._cluster.records():
            for one in record.history:
                source = None if one.source is None else one.source.value
                _check(record.node_id, source, one.target.value, reason=one.reason_code.value)

    def _follow(self, event: RegistryEvent) -> None:
        node_id = event.node_id or ""
        if event.event == "node_status_changed":
            source, target = event.fields["from"], str(event.fields["to"])
            before = self._logged.get(node_id)
            if source != before:
                detail = f"{node_id} moved from {source} to {target}, but its last move was to {before}"
                hold(Invariant.HISTORY_IN_ORDER, holds=False, detail=detail)
            _check(node_id, before, target, reason=str(event.fields["reason_code"]))
            self._logged[node_id] = target
        elif event.event in GONE:
            self._logged.pop(node_id, None)


def _check(node_id: str, source: str | None, target: str, *, reason: str) -> None:
    if reason not in TRANSITIONS.get((source, target), ()):
        hold(Invariant.KNOWN_TRANSITION, holds=False, detail=f"{node_id}: {source} → {target} ({reason})")


# A node that leaves `ready` too often gets no job before it has calmed down, however it comes back.


_SLACK_SECONDS = 5.0

_PASSING = frozenset({"flapping", "drain_requested"})
"""With these a node may leave `ready` within the step that made it so."""


class FlappingInvariants(Observer):
    """Counts exits by the log."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._exits: dict[str, list[float]] = {}
        self._decided: dict[str, deque[float]] = {}
        """When each transition was decided that is not logged yet, since its save may take long."""
        self._just_ready: set[str] = set()
        """Nodes of which the last event was that they became ready."""

    def decided(self, event: Event | None, output: Output) -> None:
        for effect in output.effects:
            if isinstance(effect, LogEvent) and effect.event == STATUS_CHANGED:
                times = self._decided.setdefault(str(effect.fields["node_id"]), deque())
                times.append(self._cluster.world.now)

    def executed(self, effect: Executable) -> None:
        if not isinstance(effect, PublishEvent) or effect.event.node_id is None:
            return
        event, node_id = effect.event, effect.event.node_id
        just_ready = node_id in self._just_ready
        self._just_ready.discard(node_id)
        if event.event in GONE:
            self._exits.pop(node_id, None)
            return
        moved = event.event == "node_status_changed"
        passing = just_ready and moved and event.fields["reason_code"] in _PASSING
        if (just_ready and not passing) or event.event == "job_assigned":
            self._is_calm(node_id)
        if moved:
            self._moved(node_id, event, passing=passing)

    def crashed(self) -> None:
        """What was not logged any more was not counted: start again."""
        self._exits.clear()
        self._decided.clear()
        self._just_ready.clear()

    def _moved(self, node_id: str, event: RegistryEvent, *, passing: bool) -> None:
        source, target, reason = (event.fields[name] for name in ("from", "to", "reason_code"))
        times = self._decided.get(node_id)
        at = times.popleft() if times else self._cluster.world.now
        if target == "ready":
            self._just_ready.add(node_id)
        elif source == "ready" and (target == "degraded" or reason == "heartbeat_timeout") and not passing:
            self._exits.setdefault(node_id, []).append(at)

    def _is_calm(self, node_id: str) -> None:
        thresholds, now = self._cluster.profile.thresholds, self._cluster.world.now
        since = now - thresholds.flap_window_seconds + _SLACK_SECONDS
        recent = [at for at in self._exits.get(node_id, ()) if at > since]
        calm = len(recent) < thresholds.flap_limit
        hold(Invariant.FLAPS_ARE_DAMPED, calm, f"{node_id} is in use at {now:.0f}, left ready at {recent}")


# S-06: a silent node is offline in bounded time, unless most of the fleet is silent; no other node is.
#
# Keeps its own account of what the registry heard of whom, and when.


_SILENCE_SLACK_SECONDS = 1.0
_SILENT_INTERVALS = 2
_TIMEOUT_INTERVALS = 3
_HANDED_ON_WITHIN_SECONDS = 5.0
"""So long a gateway may take to link and to hand on what it heard."""
_WAKES_WITHIN_SECONDS = 2.0
"""After an outage of its store the registry may take so long to decide what was due meanwhile."""


class TimeoutInvariants(Observer):
    """Watches who is heard."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._heard: dict[str, float] = {}
        self._speaks: dict[int, str] = {}
        """Which connection registered which node."""
        self._unlinked: set[str] = set()
        """Nodes that were not heard since the link to their gateway ended."""
        self._looks_from = 0.0
        """When the registry has decided by time again for long enough; infinity while its store fails."""

    def decided(self, event: Event | None, output: Output) -> None:
        effects = output.effects
        if isinstance(event, HeartbeatReceived):
            self._beat(event, effects)
        elif isinstance(event, RegistrationReceived):
            self._registered(event, effects)
        elif isinstance(event, HeartbeatRepeated | SessionReported | ConnectionLost):
            self._through_a_gateway(event)
        elif isinstance(event, StoreFailed):
            self._looks_from = inf
        elif isinstance(event, StoreRecovered):
            self._recovered(event)
        elif event is None:
            self._check_verdicts()

    def restored(self, loaded: Loaded) -> None:
        now = self._cluster.world.now
        self._heard = {record.node_id: now for record in self._cluster.records()}
        self._speaks = {}
        self._unlinked.clear()
        self._looks_from = 0.0

    def check_all(self) -> None:
        now = self._cluster.world.now
        if now < self._looks_from:
            return
        scan = self._cluster.profile.thresholds.scan_interval_seconds
        for record in self._cluster.records():
            if record.status is NodeStatus.OFFLINE:
                continue
            timeout = self._timeout(record) * (2 if record.liveness.suspected_until is not None else 1)
            silent = now - self._heard[record.node_id]
            if silent > timeout + scan + _SILENCE_SLACK_SECONDS:
                detail = f"{record.node_id} is {record.status} after {silent:.1f} s, timeout {timeout:g} s"
                hold(Invariant.SILENCE_NOTICED, holds=False, detail=detail)

    def _recovered(self, event: StoreRecovered) -> None:
        """A long outage of the store counts as a restart: everybody has one full timeout from now."""
        now = self._cluster.world.now
        self._looks_from = now + _WAKES_WITHIN_SECONDS
        if event.outage_seconds >= RESTART_SECONDS:
            self._heard = dict.fromkeys(self._heard, now)
            self._unlinked.clear()

    def _beat(self, event: HeartbeatReceived, effects: Sequence[Effect]) -> None:
        """A heartbeat counts, unless the session is being closed because its token has ended."""
        node_id = self._speaks.get(event.connection)
        dismissed = event.connection not in self._cluster.fleet._nodes.by_connection
        if node_id == event.message.node_id and not dismissed and not _refused(effects, event.connection):
            self._hear(node_id, self._cluster.world.now - event.age_seconds)

    def _through_a_gateway(self, event: HeartbeatRepeated | SessionReported | ConnectionLost) -> None:
        if isinstance(event, SessionReported):
            self._reported(event)
            return
        node_id = self._speaks.get(event.connection)
        if isinstance(event, ConnectionLost):
            self._speaks.pop(event.connection, None)
            if node_id is not None and event.link_ended:
                self._unlinked.add(node_id)
        elif node_id is not None:
            self._hear(node_id, self._cluster.world.now - event.age_seconds)

    def _hear(self, node_id: str, at: float) -> None:
        self._heard[node_id] = max(at, self._heard.get(node_id, at))
        self._unlinked.discard(node_id)

    def _reported(self, event: SessionReported) -> None:
        """A session that goes on under a registry that knows of no heartbeat gives its node a timeout."""
        record = self._cluster.fleet.node(event.node_id)
        if record is not None and record.connection == event.connection:
            self._speaks[event.connection] = event.node_id
            if record.liveness.last_heartbeat_at is None:
                self._hear(event.node_id, self._cluster.world.now)

    def _registered(self, event: RegistrationReceived, effects: Sequence[Effect]) -> None:
        """A registration counts, even if the store has no room for it."""
        now = self._cluster.world.now
        record = self._cluster.fleet.node(event.message.node_id or "")
        if record is not None and record.liveness.last_seen_at == now:
            self._hear(record.node_id, now)
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, NodeRegisterAck):
                node_id = effect.message.node_id
                for number in [one for one, holder in self._speaks.items() if holder == node_id]:
                    del self._speaks[number]
                self._speaks[event.connection] = node_id
                self._hear(node_id, now)

    def _check_verdicts(self) -> None:
        """Look at each node that was just called silent."""
        now = self._cluster.world.now
        timed_out = {
            record.node_id: record
            for record in self._cluster.records()
            if record.since == now and record.reason_code is ReasonCode.HEARTBEAT_TIMEOUT
        }
        if not timed_out:
            return
        patience = 2 if self._most_are_silent(timed_out) else 1
        for node_id, record in timed_out.items():
            silent, timeout = now - self._heard[node_id], self._timeout(record)
            self._check_gateway(node_id, timeout)
            times = 2 if node_id in self._unlinked else patience
            if silent < times * timeout - 1e-6:
                detail = f"{node_id} was heard {silent:.1f} s ago; {times} x its timeout {timeout:g} s"
                hold(Invariant.NO_FALSE_TIMEOUT, holds=False, detail=detail)

    def _check_gateway(self, node_id: str, timeout: float) -> None:
        """No node times out that has sent a heartbeat to a gateway with a link of some seconds."""
        gateways = self._cluster.gateways
        for session in () if gateways is None else gateways.linked(for_seconds=_HANDED_ON_WITHIN_SECONDS):
            if session.node_id != node_id or session.last is None:
                continue
            for heard_at in reversed(session.heard_at):  # one that came just now is still on its way
                silent = self._cluster.world.now - heard_at
                if silent >= timeout - _HANDED_ON_WITHIN_SECONDS:
                    break
                on_its_way = silent < _HANDED_ON_WITHIN_SECONDS
                hold(Invariant.NO_FALSE_TIMEOUT, on_its_way, f"a gateway heard {node_id} {silent:.1f} s ago")

    def _most_are_silent(self, timed_out: Collection[str]) -> bool:
        """Say whether, before these timeouts, the registry had reason to suspect itself (§4)."""
        now = self._cluster.world.now
        live = [
            record
            for record in self._cluster.records()
            if record.status is not NodeStatus.OFFLINE or record.node_id in timed_out
        ]
        silent = sum(
            now - self._heard[record.node_id] > _SILENT_INTERVALS * record.schedule.interval_seconds
            for record in live
        )
        return len(live) >= FEWEST_NODES and silent * 2 > len(live)

    def _timeout(self, record: NodeRecord) -> float:
        """A node's timeout, by §4; a longer one that it was given before may still hold."""
        least = self._cluster.profile.thresholds.heartbeat_timeout_seconds
        return max(
            least, _TIMEOUT_INTERVALS * record.schedule.interval_seconds, record.schedule.timeout_seconds
        )


def _refused(effects: Sequence[Effect], connection: int) -> bool:
    return any(
        isinstance(effect, Send) and effect.connection == connection and isinstance(effect.message, NodeError)
        for effect in effects
    )


class CheckInvariants(Observer):
    """Watches nodes by the checks that they reported last, as their heartbeats arrived."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._failed: dict[str, tuple[int, frozenset[str]]] = {}
        """Of each node: the epoch of its session, and the scopes that failed a required check."""

    def decided(self, event: Event | None, output: Output) -> None:
        if isinstance(event, HeartbeatReceived):
            self._follow(event)
        for effect in output.effects:
            if isinstance(effect, LogEvent) and effect.event == "job_assigned":
                self._granted(str(effect.fields["job_id"]))

    def crashed(self) -> None:
        self._failed.clear()

    def check_all(self) -> None:
        for record in self._cluster.records():
            self._check(record)

    def _follow(self, event: HeartbeatReceived) -> None:
        record = self._cluster.fleet.node(event.message.node_id)
        if record is None or record.connection != event.connection:
            return
        required = self._cluster.profile.thresholds.admission.required_checks
        parts = event.message.parts
        if parts is not None and parts.checks is not None:
            failed = (one.scope for one in parts.checks if one.name in required and not one.ok)
            self._failed[record.node_id] = record.epoch, frozenset(failed)
        self._check(record)

    def _failed_of(self, record: NodeRecord) -> frozenset[str]:
        epoch, failed = self._failed.get(record.node_id, (0, frozenset[str]()))
        return failed if epoch == record.epoch else frozenset()

    def _check(self, record: NodeRecord) -> None:
        ready = record.status is NodeStatus.READY and NODE_SCOPE in self._failed_of(record)
        hold(Invariant.CHECKS_HOLD, not ready, f"{record.node_id} is ready and failed a check")

    def _granted(self, job_id: str) -> None:
        claim = self._cluster.claims().get(job_id)
        for grant in () if claim is None else claim.grants:
            record = self._cluster.fleet.node(grant.node_id)
            assert record is not None
            failed = self._failed_of(record)
            for uuid in grant.gpu_uuids:
                gpu = record.gpus.get(uuid)
                parent = None if gpu is None else gpu.parent_uuid
                is_sound = uuid not in failed and parent not in failed
                hold(Invariant.CHECKS_HOLD, is_sound, f"{job_id} got {uuid}, which failed a check")
