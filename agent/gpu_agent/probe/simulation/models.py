"""Models of a simulated machine, from a model source that reads no disk, and its hostname.

The spec states them, with the faults that change their status in time.
"""

import time
from collections.abc import Callable, Iterable

from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.models.kinds import languages_of
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.probe.models.source import Listing, Reading, Root, Unit
from gpu_agent.probe.simulation.spec import ModelPlan, parse_spec
from gpu_agent.probe.snapshot import Sources
from gpu_agent.records import replace
from gpu_agent.wire.inventory import Model, ModelStatus

VERSION = "1"
_NOWHERE = Root("simulated", 0)
_STATUS = {"downloading": ModelStatus.DOWNLOADING, "error": ModelStatus.ERROR}


def simulated_sources(spec: str, sources: Sources) -> Sources:
    """Replace the models on the disks and the hostname by those that the line states, if it does.

    Raises:
        SimulationError: the line cannot be read.
    """
    simulation = parse_spec(spec)
    if simulation.hostname is not None:
        sources = replace(sources, host=HostProbe(hostname=simulation.hostname))
    if simulation.models is None:
        return sources
    stated = SimulatedModels(simulation.models, time.monotonic)
    return replace(sources, scanner=ModelScanner((stated,), sources.scanner.declarations))


class SimulatedModels:
    """The stated models. Their time begins with the first listing."""

    name = "simulated"
    paths = ()

    def __init__(self, plans: Iterable[ModelPlan], clock: Callable[[], float]) -> None:
        """`clock` gives seconds of any one clock."""
        self._plans = {plan.model_id: plan for plan in plans}
        self._clock = clock
        self._began: float | None = None

    def units(self) -> Listing:
        """List each model that is there now."""
        units = (Unit(_NOWHERE, model_id, model_id) for model_id in self._plans)
        return Listing(tuple(unit for unit in units if "gone" not in self._states(unit.name)))

    def read(self, unit: Unit) -> Reading:
        """Read one model; nothing is watched, so that each scan reads it again."""
        states = self._states(unit.name)
        status = next((_STATUS[state] for state in states if state in _STATUS), ModelStatus.READY)
        source, target = languages_of(unit.name)
        model = Model(
            model_id=unit.name,
            version=VERSION,
            kind=self._plans[unit.name].kind,
            src_lang=source,
            tgt_lang=target,
            status=status,
            source=self.name,
            detail=None if status is ModelStatus.READY else "simulated",
        )
        return Reading(models=(model,))

    def _states(self, model_id: str) -> list[str]:
        now = self._clock()
        if self._began is None:
            self._began = now
        elapsed = now - self._began
        return [fault.name for fault in self._plans[model_id].faults if fault.holds_at(elapsed)]
