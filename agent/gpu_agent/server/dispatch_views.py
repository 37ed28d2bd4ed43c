"""What the registry shows of selections and failed dispatches outside: wall times, names that stay.

Derives nothing that the fleet does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.exclusions import ExclusionWindow
from gpu_agent.registry.job import Claim
from gpu_agent.server.clock import Clock
from gpu_agent.server.viewing import named_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The place that a claim would get at this moment; nothing is reserved by it."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    score: int | None
    """How good the place is, affinity included; None for a job that holds it already."""

    @property
    def held(self) -> bool:
        """True when the job holds this place by a claim."""
        return self.score is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One node that a failed dispatch fell to: what the job needed, what the node had."""

    node_id: str
    need: str
    have: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionsView:
    """A minute in which dispatches failed. Times are Unix time."""

    window_start: float
    window_end: float
    failed: int
    """Dispatches that found nobody."""
    counts: Mapping[str, int]
    """How many nodes fell to each reason, over all of them."""
    examples: Mapping[str, tuple[ExampleView, ...]]
    last_jobs: tuple[str, ...]


def selection(job_id: str, chosen: Choice | Claim) -> Selection:
    """Show the place that a job would get, or has."""
    return Selection(
        job_id=job_id,
        node_id=chosen.node_id,
        gpu_uuids=named_gpus(chosen.gpu_uuids),
        endpoint=chosen.endpoint,
        score=chosen.score if isinstance(chosen, Choice) else None,
    )


def exclusions(window: ExclusionWindow, clock: Clock) -> ExclusionsView:
    """Show what dispatches failed on in one minute."""
    return ExclusionsView(
        window_start=clock.wall_at(window.start),
        window_end=clock.wall_at(window.end),
        failed=window.failed,
        counts={reason.value: count for reason, count in window.counts.items()},
        examples={
            reason.value: tuple(
                ExampleView(node_id=one.node_id, need=one.need, have=one.have) for one in shown
            )
            for reason, shown in window.examples.items()
        },
        last_jobs=window.last_jobs,
    )
