"""Every node is able or excluded, each for a reason, and dispatch does what it explains (A-3)."""

from collections.abc import Sequence

from gpu_agent.registry.actions import Action, Answer
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.verdict import Explanation, NoAvailableNode
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

_MANY_NODES = 50
"""With more, not every claim is explained beforehand."""


class ReasonsWatch(Watch):
    """Asks for explanations."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._said: Explanation | None = None

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
            elif isinstance(result, NoAvailableNode):
                same = not said.able and dict(result.counts) == said.counts
                hold(Invariant.EVERY_REASON, same, f"{result} was answered, {said} explained")

    def glance(self) -> None:
        if self._scene.fleet.size <= _MANY_NODES:
            for job in _WHAT_IF:
                self._ask_why(job, self._explained(job))

    def _ask_why(self, job: Job, said: Explanation) -> None:
        """A node says of itself that it refuses a job just when the explanation of the job says so."""
        demand, now = Demand.of(job), self._scene.world.now
        for node_id in said.able:
            why = self._scene.fleet.why(node_id, now)
            against = why is None or [
                one for one in (*why.objections, *why.limits) if one.scope.covers(demand)
            ]
            hold(Invariant.EVERY_REASON, not against, f"{node_id} is able for {job}, but says {against}")
        for one in said.excluded:
            why = self._scene.fleet.why(one.node_id, now)
            reasons = why and {
                own.reason for own in (*why.objections, *why.limits) if own.scope.covers(demand)
            }
            if not reasons or one.reason not in reasons:
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{one}, but it says of itself {reasons}")

    def _explained(self, job: Job) -> Explanation:
        said = self._scene.fleet.explain(job, self._scene.world.now)
        named = [*said.able, *(one.node_id for one in said.excluded)]
        known = [record.node_id for record in self._scene.records()]
        hold(Invariant.EVERY_REASON, sorted(named) == sorted(known), f"{named} explained of {known}")
        for one in said.excluded:
            hold(Invariant.EVERY_REASON, one.need and one.have, f"{one} says nothing")
        return said
