"""Where host and models are read, as the settings have it: this machine's, or the models of a simulated one.

Opened for the life of the process, since they remember, and anew when other places are named. Opening reads
nothing yet.
"""

import os

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.models.catalogue import Catalogue
from gpu_agent.probe.options import sources_of
from gpu_agent.probe.simulated_models import with_models_of
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.own_home import home
from gpu_agent.runtime.tasks import in_thread

LOOK_THROUGH_SECONDS = 20.0
"""How long new places may take until all of their models are known."""
_SHARE_OF_THE_SCAN = 0.8
"""A scan ends in the unit that it is at: the rest is left for that one."""


def opened_sources(settings: AgentSettings, kept: Catalogue | None = None) -> Sources:
    """Open them; models that a simulation states stand in place of those on the disks.

    What the catalogue before, if there is one, knows of places that stay is kept.
    """
    found = sources_of(settings.probe_options, environ=os.environ, home=home(), kept=kept)
    return found if settings.simulate is None else with_models_of(settings.simulate, found)


async def renewed_sources(settings: AgentSettings, kept: Catalogue) -> Sources:
    """Open them and look through them first, so that nothing seems to be missing while they are new.

    A place on a disk that hangs is not waited for: the probe goes on without its answer, and says so.
    """
    sources = opened_sources(settings, kept)

    def look_through() -> None:
        sources.catalogue.scan(LOOK_THROUGH_SECONDS * _SHARE_OF_THE_SCAN)

    try:
        await in_thread("new places", look_through, deadline_seconds=LOOK_THROUGH_SECONDS)
    except TimeoutError:
        return opened_sources(settings, sources.catalogue)  # that one is still being looked through
    return sources
