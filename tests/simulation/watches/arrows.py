"""No arrow outside the table of §4, seen from outside: in the log, in what nodes are told, in their story."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action, TellStatus
from gpu_agent.server.clerk import Doing, Publish
from gpu_agent.store.base import Loaded, RegistryEvent
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Watch

GONE = frozenset({"node_removed", "node_purged"})
"""Notes of a record that was let go."""

_LEFT = "heartbeat_timeout unregistered removed"

ARROWS: dict[tuple[str | None, str], frozenset[str]] = {
    arrow: frozenset(reasons.split())
    for arrow, reasons in {
        (None, "registering"): "registered",
        ("registering", "registering"): "registered",
        ("ready", "registering"): "registered",
        ("degraded", "registering"): "registered",
        ("offline", "registering"): "registered resumed",
        ("draining", "registering"): "resumed",
        ("registering", "ready"): "health_checks_passed",
        ("registering", "degraded"): "model_missing gpu_unavailable warmup_timeout",
        ("ready", "degraded"): "gpu_unavailable model_missing health_checks_failed flapping",
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


class ArrowsWatch(Watch):
    """Watches changes of status."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._logged: dict[str, str] = {}
        """Each node's status by its last move in the log."""

    def carried(self, doing: Doing) -> None:
        if isinstance(doing, TellStatus):
            source = None if doing.previous_status is None else doing.previous_status.value
            _check(doing.node_id, source, doing.status.value, reason=doing.reason_code.value)
        elif isinstance(doing, Publish):
            self._follow(doing.event)

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        """A process that crashed may have kept moves that it had no time to log: the next one has them."""
        self._logged.clear()
        for event in loaded.recent:
            self._follow(event)

    def glance(self) -> None:
        for record in self._scene.records():
            for one in record.story:
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
    if reason not in ARROWS.get((source, target), ()):
        hold(Invariant.KNOWN_ARROW, holds=False, detail=f"{node_id}: {source} → {target} ({reason})")
