"""Models on disks that have not answered for too long: nobody can load what cannot be read.

It refuses to touch what the owner declares, which is his word, and what could not serve before:
that has a reason of its own.
"""

from collections.abc import Iterable
from dataclasses import replace

from gpu_agent.probe.models import declared
from gpu_agent.wire.inventory import Model, ModelStatus

DETAIL = "its disk does not answer"

_VOUCHED_FOR_BY_DISK = (ModelStatus.READY, ModelStatus.DOWNLOADING)


def unanswered(models: Iterable[Model]) -> tuple[Model, ...]:
    """The models as they stand while no disk vouches for them."""
    return tuple(
        replace(model, status=ModelStatus.ERROR, detail=DETAIL)
        if model.source != declared.SOURCE and model.status in _VOUCHED_FOR_BY_DISK
        else model
        for model in models
    )
