"""How many nodes there are to hear from, and how many of them are warming up or will be once they are back.

Counted as nodes change, never by looking at all of them. Decides nothing.
"""

from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus


class Census:
    """Counts of nodes."""

    def __init__(self) -> None:
        self._live: set[str] = set()
        self._warming: set[str] = set()

    @property
    def live(self) -> int:
        """Nodes that beat or are expected back: every one that is not offline, or whose session is open."""
        return len(self._live)

    @property
    def warming(self) -> int:
        """Those of the live that register now, or will when they are back: a restart makes it all of them."""
        return len(self._warming)

    def count(self, record: NodeRecord) -> None:
        """Count a node as it is now."""
        live = record.status is not NodeStatus.OFFLINE or record.connection is not None
        warming = live and (record.status is NodeStatus.REGISTERING or not record.connected)
        _put(self._live, record.node_id, there=live)
        _put(self._warming, record.node_id, there=warming)

    def forget(self, node_id: str) -> None:
        """Count a node no longer."""
        self._live.discard(node_id)
        self._warming.discard(node_id)


def _put(among: set[str], node_id: str, *, there: bool) -> None:
    (among.add if there else among.discard)(node_id)
