"""How a node's record is removed, and which goes first where too many are offline.

With auth off anybody may register under a fresh id, again and again. So of the records that are offline, that
no operator has a request for and that have no token, only `max_offline_records` stay. With auth on a join
token of many uses admits many nodes, so all offline records together take at most `max_offline_bytes`.
"""

from math import inf

from gpu_agent.registry.actions import Step
from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.lifecycle import purge_at
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.settings import Thresholds


class NodeRemoval:
    """Removes nodes from the table, from dispatch and from the store."""

    def __init__(self, thresholds: Thresholds, nodes: NodeTable, dispatch: Dispatch) -> None:
        self._thresholds = thresholds
        self._nodes = nodes
        self._dispatch = dispatch
        self._offline = Deadlines()
        """Offline records that may be removed."""
        self._unproven = Deadlines()
        """Those of them that have no token."""
        self._bytes: dict[str, int] = {}
        """What each offline record takes."""
        self._all_bytes = 0

    def remove(self, record: NodeRecord, step: Step) -> None:
        """Remove a node: its tokens prove nothing any more."""
        self._nodes.remove(record)
        for held in self._dispatch.remove(record.node_id):
            step.change_held(held)
        step.change_node(record)

    def purge(self, record: NodeRecord, *, reason: str, step: Step) -> None:
        """Remove a record without an operator's request, and log why."""
        self.remove(record, step)
        offline = max(0.0, step.now - record.since)
        fields = {"offline_seconds": round(offline), "reason": reason}
        step.log("node_purged", name_of(record) | fields)

    def count_offline(self, step: Step) -> None:
        """Learn which of the touched nodes may be evicted now."""
        for node_id in step.touched:
            self._forget(node_id)
            record = self._nodes.records.get(node_id)
            if record is not None and self._may_be_evicted(record):
                self._offline.at(node_id, record.since)
                self._bytes[node_id] = record.declared.size_bytes
                self._all_bytes += record.declared.size_bytes
                if not record.tokens.all:  # else an operator let it in, and auth may be on again tomorrow
                    self._unproven.at(node_id, record.since)

    def evict(self, step: Step, *, auth_off: bool) -> None:
        """Remove the nodes longest offline until no more than allowed are left."""
        while auth_off and self._unproven.scheduled > self._thresholds.max_offline_records:
            self._evict(next(self._unproven.due(inf)), "too many are offline", step)
        while self._all_bytes > self._thresholds.max_offline_bytes:
            self._evict(next(self._offline.due(inf)), "offline nodes take too much memory", step)

    def _evict(self, node_id: str, reason: str, step: Step) -> None:
        self._forget(node_id)
        self.purge(self._nodes.records[node_id], reason=reason, step=step)

    def _forget(self, node_id: str) -> None:
        self._offline.cancel(node_id)
        self._unproven.cancel(node_id)
        self._all_bytes -= self._bytes.pop(node_id, 0)

    def _may_be_evicted(self, record: NodeRecord) -> bool:
        purgeable = purge_at(record, self._thresholds) < inf
        return purgeable and not record.claims and not record.held


def name_of(record: NodeRecord) -> dict[str, object]:
    """Name a node in an event that is logged when its record is gone (§3.1)."""
    named: dict[str, object] = {"node_id": record.node_id}
    return named if record.hostname is None else named | {"hostname": record.hostname}
