"""What a hub cache is found to hold, in a test."""

from pathlib import Path

from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.wire.inventory import Model
from tests.probe.models.caches import revision

ONE, TWO = revision(1), revision(2)


def models_in(hub: Path) -> tuple[Model, ...]:
    cache = HubCache([hub])
    return tuple(model for unit in cache.units().units for model in cache.read(unit).models)
