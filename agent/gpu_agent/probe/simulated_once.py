"""A simulated machine as a command sees it that looks once: at the moment when the simulation begins.

What is to happen later does not happen to it. Keeps nothing for a second look.
"""

from gpu_agent.probe.health import HealthKeeper
from gpu_agent.probe.nvml.process import DEADLINE_SECONDS, hung_sentence
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.wire.inventory import GpuReport, Outcome


def read_once(spec: str, *, seed: str, now: float) -> GpuReport:
    """Read it, with what its first events do to health; `now` in Unix time.

    Raises:
        SimulationError: the line cannot be read.
    """
    gpus = SimulatedGpus(spec, seed=seed)
    if gpus.hung_seconds(now) is not None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=hung_sentence(DEADLINE_SECONDS))
    return HealthKeeper().observe(gpus.read(now), now_wall=now, now_mono=now)
