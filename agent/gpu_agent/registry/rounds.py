"""One round through what time has made due: claims that end, nodes to look at; a part of them at a time.

Thousands may be due in the same instant, as after a restart or an outage, and everybody else waits
while they are dealt with. So a round takes so many and leaves the rest to the next, which follows at once.
"""

from itertools import islice

from gpu_agent.registry.deadlines import Deadlines
from gpu_agent.registry.house import House
from gpu_agent.registry.step import Step
from gpu_agent.registry.watch import Watch

MOST_AT_ONCE = 64
"""Nodes that are looked at, and claims that are ended, in one round: some 10 ms of work."""


class Rounds:
    """Goes round the house."""

    def __init__(self, house: House, deadlines: Deadlines) -> None:
        self._house = house
        self._deadlines = deadlines
        self._watch = Watch(house)
        self.unfinished = False
        """True while a round has left something that is due."""

    def go(self, step: Step) -> None:
        """Deal with what is due, or with a part of it."""
        ended = self.end_claims(step)
        reached = list(islice(self._deadlines.reached(step.now), MOST_AT_ONCE))
        records = self._house.roster.records
        looked_at = [record for node_id in reached if (record := records.get(node_id))]
        self._watch.look(looked_at, step, goes_on=self.unfinished)
        self.unfinished = MOST_AT_ONCE in (ended, len(reached))

    def end_claims(self, step: Step, *, of_job: str | None = None) -> int:
        """End claims whose time has passed, that of `of_job` in any case, and say how many ended."""
        ended = self._house.claiming.expire(step, most=MOST_AT_ONCE, of_job=of_job)
        for node_id in dict.fromkeys(claim.node_id for claim in ended):
            self._house.verdicts.settle(self._house.roster.records[node_id], step)
        return len(ended)
