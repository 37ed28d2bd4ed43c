"""A page of the claims that are held, by job. Looks at tens of thousands and shows only those of the page."""

import heapq
from collections.abc import Iterable
from operator import attrgetter

from gpu_agent.registry.job import Claim

_BY_JOB = attrgetter("job_id")


def page(
    claims: Iterable[Claim], *, node_id: str | None = None, after: str | None = None, limit: int | None = None
) -> list[Claim]:
    """Return the first claims by job, on a node if one is named, behind a job if one is named."""
    wanted = (
        claim
        for claim in claims
        if (node_id is None or claim.node_id == node_id) and (after is None or claim.job_id > after)
    )
    return sorted(wanted, key=_BY_JOB) if limit is None else heapq.nsmallest(limit, wanted, key=_BY_JOB)
