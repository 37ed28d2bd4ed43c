"""A node that leaves `ready` too often gets no job before it has calmed down, however it comes back."""

from gpu_agent.server.clerk import Doing, Publish
from gpu_agent.store.base import RegistryEvent
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watches.arrows import GONE
from tests.simulation.watching import Watch

_SLACK_SECONDS = 90.0
"""An exit is decided before it is logged, by so much where the disk keeps nothing meanwhile."""

_PASSING = frozenset({"flapping", "drain_requested"})
"""With these a node may leave `ready` within the step that made it so."""


class FlapsWatch(Watch):
    """Counts exits by the log."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._exits: dict[str, list[float]] = {}
        self._just_ready: set[str] = set()
        """Nodes of which the last event was that they became ready."""

    def carried(self, doing: Doing) -> None:
        if not isinstance(doing, Publish) or doing.event.node_id is None:
            return
        event, node_id = doing.event, doing.event.node_id
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
        """What was not logged any more was not counted: begin anew."""
        self._exits.clear()
        self._just_ready.clear()

    def _moved(self, node_id: str, event: RegistryEvent, *, passing: bool) -> None:
        source, target, reason = (event.fields[name] for name in ("from", "to", "reason_code"))
        if target == "ready":
            self._just_ready.add(node_id)
        elif source == "ready" and (target == "degraded" or reason == "heartbeat_timeout") and not passing:
            self._exits.setdefault(node_id, []).append(self._scene.world.now)

    def _is_calm(self, node_id: str) -> None:
        thresholds, now = self._scene.climate.thresholds, self._scene.world.now
        since = now - thresholds.flap_window_seconds + _SLACK_SECONDS
        recent = [at for at in self._exits.get(node_id, ()) if at > since]
        calm = len(recent) < thresholds.flap_limit
        hold(Invariant.FLAPS_ARE_DAMPED, calm, f"{node_id} is in use at {now:.0f}, left ready at {recent}")
