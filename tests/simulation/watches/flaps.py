"""A node that leaves `ready` too often is not made ready again by healthy beats before it has calmed down."""

from gpu_agent.server.clerk import Doing, Publish
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watches.arrows import GONE
from tests.simulation.watching import Watch

_SLACK_SECONDS = 5.0
"""An exit is logged a little after it was decided."""


class FlapsWatch(Watch):
    """Counts exits by the log."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._exits: dict[str, list[float]] = {}
        self._flaps: dict[str, bool] = {}
        """Whether a node was degraded last because it flaps."""

    def carried(self, doing: Doing) -> None:
        if not isinstance(doing, Publish):
            return
        event, node_id = doing.event, doing.event.node_id or ""
        if event.event in GONE:
            self._exits.pop(node_id, None)
        elif event.event == "node_status_changed":
            move = (event.fields["from"], event.fields["to"])
            reason = event.fields["reason_code"]
            if move == ("ready", "degraded") or (move[0] == "ready" and reason == "heartbeat_timeout"):
                self._exits.setdefault(node_id, []).append(self._scene.world.now)
            if move[1] == "degraded":
                self._flaps[node_id] = reason == "flapping"
            if move == ("degraded", "ready") and self._flaps.get(node_id):
                self._recovered(node_id)

    def crashed(self) -> None:
        """What was not logged any more was not counted: begin anew."""
        self._exits.clear()

    def _recovered(self, node_id: str) -> None:
        thresholds, now = self._scene.climate.thresholds, self._scene.world.now
        since = now - thresholds.flap_window_seconds + _SLACK_SECONDS
        recent = [at for at in self._exits.get(node_id, ()) if at > since]
        calm = len(recent) < thresholds.flap_limit
        hold(Invariant.FLAPS_ARE_DAMPED, calm, f"{node_id} is ready again at {now:.0f}, left it at {recent}")
