"""Where host and models are read, as the settings have it: this machine's, or the models of a simulated one.

Opened for the life of the process, since they remember, and anew when other places are named. Opening reads
nothing yet.
"""

import os

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.options import sources_of
from gpu_agent.probe.simulated_models import with_models_of
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.places import home
from gpu_agent.runtime.tasks import in_thread

LOOK_THROUGH_SECONDS = 20.0
"""How long new places may take until all of their models are known."""
_SHARE_OF_THE_SCAN = 0.8
"""A scan ends in the unit that it is at: the rest is left for that one."""


def opened_sources(settings: AgentSettings) -> Sources:
    """Open them; models that a simulation states stand in place of those on the disks."""
    found = sources_of(settings.probe_options, environ=os.environ, home=home())
    return found if settings.simulate is None else with_models_of(settings.simulate, found)


async def renewed_sources(settings: AgentSettings) -> Sources:
    """Open them and look through them first, so that nothing seems to be missing while they are new."""
    try:
        return await in_thread(
            "new places", lambda: _looked_through(settings), deadline_seconds=LOOK_THROUGH_SECONDS
        )
    except TimeoutError:  # a disk that hangs: the probe goes on without its answer, and says so
        return opened_sources(settings)


def _looked_through(settings: AgentSettings) -> Sources:
    sources = opened_sources(settings)
    sources.catalogue.scan(LOOK_THROUGH_SECONDS * _SHARE_OF_THE_SCAN)
    return sources
