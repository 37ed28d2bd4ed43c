"""What was found in several places or parts of one: each model once, by id and version."""

from collections.abc import Iterable, Mapping

from gpu_agent.probe.models.declared import better
from gpu_agent.wire.inventory import Model

Found = Mapping[tuple[str, str], Model]
"""By id and version."""


def merged(findings: Iterable[Iterable[Model]]) -> Found:
    """Of a model found twice, the one that can serve; the first where both are alike."""
    found: dict[tuple[str, str], Model] = {}
    for models in findings:
        for model in models:
            identity = model.model_id, model.version
            found[identity] = better(found[identity], model) if identity in found else model
    return found
