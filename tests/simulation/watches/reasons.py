"""Every node is able or excluded, each for a reason, and dispatch does what it explains (A-3)."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action, Answer
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.verdict import Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.events import ClaimAsked, Event
from gpu_agent.registry.job import Claim, Job
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Watch

_WHAT_IF = (
    Job(job_id="what-if"),
    Job(job_id="what-if", public=True, required_models=("nmt",), min_gpu_memory_mb=40_000),
    Job(job_id="what-if", gpu_count=2, labels={"zone": "a"}, required_features=("emotion_detection",)),
)

_ASKED_AT_ONCE = 3
"""So many nodes are asked what they say of themselves; the next time it is the turn of others."""

_MANY_NODES = 50
"""With more, nothing is explained."""


class ReasonsWatch(Watch):
    """Asks for explanations."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._said: Explanation | None = None
        self._glances = 0

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimAsked) and self._scene.fleet.size <= _MANY_NODES:
            fresh = self._scene.fleet.claim_of(event.job.job_id) is None
            # A claim that ends at this very moment makes room that the explanation does not know of.
            due = self._scene.fleet._dispatch.next_expiry
            settled = due is None or due > self._scene.world.now
            self._said = self._explained(event.job) if fresh and settled else None

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if not isinstance(event, ClaimAsked) or self._said is None:
            return
        said, self._said = self._said, None
        for action in actions:
            if not isinstance(action, Answer):
                continue
            result = action.result
            if isinstance(result, Claim):
                hold(Invariant.EVERY_REASON, result.node_id in said.able, f"{result} was not able: {said}")
            elif isinstance(result, NoAvailableNode) and (said.able or dict(result.counts) != said.counts):
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{result} was answered, not {said}")

    def glance(self) -> None:
        """Explain one job to the whole fleet, and ask a few nodes whether they agree."""
        records = self._scene.records()
        if not 0 < len(records) <= _MANY_NODES:
            return
        self._glances += 1
        job = _WHAT_IF[self._glances % len(_WHAT_IF)]
        said, demand = self._explained(job), Demand.of(job)
        excluded = {one.node_id: one for one in said.excluded}
        for turn in range(_ASKED_AT_ONCE):
            node_id = records[(self._glances + turn) % len(records)].node_id
            self._ask_why(node_id, demand, excluded.get(node_id))

    def _ask_why(self, node_id: str, demand: Demand, excluded: Excluded | None) -> None:
        """A node says of itself that it refuses a job just when the explanation of the job says so."""
        why = self._scene.fleet.why(node_id, self._scene.world.now)
        own = () if why is None else (*why.objections, *why.limits)
        against = {one.reason for one in own if one.scope.covers(demand)}
        if excluded is None:
            hold(Invariant.EVERY_REASON, why and not against, f"{node_id} is able, but says {against}")
        else:
            agrees = excluded.reason in against
            hold(Invariant.EVERY_REASON, agrees, f"{excluded}, but it says of itself {against}")

    def _explained(self, job: Job) -> Explanation:
        said = self._scene.fleet.explain(job, self._scene.world.now)
        named = [*said.able, *(one.node_id for one in said.excluded)]
        known = [record.node_id for record in self._scene.records()]
        hold(Invariant.EVERY_REASON, sorted(named) == sorted(known), f"{named} explained of {known}")
        for one in said.excluded:
            if not one.need or not one.have:
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{one} says nothing")
        return said
