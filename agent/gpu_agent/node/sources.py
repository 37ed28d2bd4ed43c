"""Where host and models are read, as the settings have it: this machine's, or the models of a simulated one.

Opened once for the life of the process, since they remember. Reads nothing yet.
"""

import os

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.options import sources_of
from gpu_agent.probe.simulated_models import with_models_of
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.places import home


def opened_sources(settings: AgentSettings) -> Sources:
    """Open them; models that a simulation states stand in place of those on the disks."""
    found = sources_of(settings.probe_options, environ=os.environ, home=home())
    return found if settings.simulate is None else with_models_of(settings.simulate, found)
