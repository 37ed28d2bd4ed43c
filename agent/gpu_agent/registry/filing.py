"""The lists kept of nodes beside their records: a node is entered anew in each whenever a step touched it."""

from gpu_agent.registry.census import Census
from gpu_agent.registry.deadlines import Deadlines, next_look
from gpu_agent.registry.house import House
from gpu_agent.registry.step import Step


class Filing:
    """Keeps the deadlines, the census and the nodes' tokens as the records are."""

    def __init__(self, house: House, deadlines: Deadlines, census: Census) -> None:
        self._house = house
        self._deadlines = deadlines
        self._census = census

    def file(self, step: Step) -> None:
        """Enter whom a step touched, and strike out whom it let go."""
        house = self._house
        for node_id in step.touched:
            record = house.roster.records.get(node_id)
            if record is None:
                self._deadlines.forget(node_id)
                house.tokens.forget(node_id)
                self._census.forget(node_id)
            else:
                house.tokens.fit(record)
                self._census.count(record)
                self._deadlines.at(node_id, next_look(record, house.thresholds))
