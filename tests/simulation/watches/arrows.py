"""No arrow outside the table of §4, seen from outside: in the log, in what nodes are told, in their story."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action, Note, TellStatus
from gpu_agent.registry.events import Event, SaveFailed
from gpu_agent.server.clerk import Doing
from gpu_agent.store.base import Loaded
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
        self._status: dict[str, str] = {}
        """As the log last told it."""

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Note):
                if action.event == "node_status_changed":
                    self._follow(action)
                elif action.event in GONE:
                    self._status.pop(str(action.fields["node_id"]), None)
        if isinstance(event, SaveFailed):
            self._look()

    def carried(self, doing: Doing) -> None:
        if isinstance(doing, TellStatus):
            source = None if doing.previous_status is None else doing.previous_status.value
            _check(doing.node_id, source, doing.status.value, reason=doing.reason_code.value)

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        self._look()
        self.decided(None, actions)

    def glance(self) -> None:
        for record in self._scene.records():
            for one in record.story:
                source = None if one.source is None else one.source.value
                _check(record.node_id, source, one.target.value, reason=one.reason_code.value)

    def _follow(self, note: Note) -> None:
        fields = note.fields
        node_id, source, target = str(fields["node_id"]), fields["from"], str(fields["to"])
        before = self._status.get(node_id)
        hold(Invariant.KNOWN_ARROW, source == before, f"{node_id} moved from {source}, but was {before}")
        _check(node_id, before, target, reason=str(fields["reason_code"]))
        self._status[node_id] = target

    def _look(self) -> None:
        """Take the statuses anew: a save that failed was undone, or a process began from what was kept."""
        self._status = {
            record.node_id: record.status.value for record in self._scene.records() if record.story
        }


def _check(node_id: str, source: str | None, target: str, *, reason: str) -> None:
    if reason not in ARROWS.get((source, target), ()):
        hold(Invariant.KNOWN_ARROW, holds=False, detail=f"{node_id}: {source} → {target} ({reason})")
