"""How a node's record is let go, with all that hangs on it: its claims of old, its tokens, its history.

And which goes first where too many pile up. With auth off anybody may come under a fresh id, again and
again: of records that are offline, carry nobody's wish and have no token only so many stay.
"""

from math import inf

from gpu_agent.registry.deadlines import Deadlines, purge_at
from gpu_agent.registry.house import House
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step


def let_go(record: NodeRecord, house: House, step: Step) -> None:
    """Know a node no longer, and save that: what proved it proves nothing any more."""
    house.roster.drop(record)
    house.dispatch.forget(record.node_id)
    house.claiming.forget(record.node_id)
    step.keep_node(record)


def purge(record: NodeRecord, house: House, *, why: str, step: Step) -> None:
    """Let go of a record that nobody asked to be rid of, and note why."""
    let_go(record, house, step)
    offline = max(0.0, step.now - record.since)
    fields = {"node_id": record.node_id, "offline_seconds": round(offline), "reason": why}
    step.note("node_purged", fields)


class Crowd:
    """The records that may be let go when there are too many, the one longest offline first."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._offline = Deadlines()

    def thin_out(self, step: Step) -> None:
        """Count in and out whom a step touched, and let the oldest go until no more are left than may be."""
        for node_id in step.touched:
            self._offline.forget(node_id)
            record = self._house.roster.records.get(node_id)
            if record is not None and self._may_go(record):
                self._offline.at(node_id, record.since)
        limit = self._house.thresholds.max_offline_records
        while self._offline.planned > limit:
            node_id = next(self._offline.reached(inf))
            purge(self._house.roster.records[node_id], self._house, why="too many are offline", step=step)

    def _may_go(self, record: NodeRecord) -> bool:
        """A node with a token was let in by somebody, and auth may be on again tomorrow."""
        purgeable = purge_at(record, self._house.thresholds) < inf
        return purgeable and not record.claims and not record.keys.all
