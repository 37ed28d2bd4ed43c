"""A machine on the stage: GPUs that can be lost, a driver that can hang, models that can break.

What its agent makes of it goes through the agent's own health keeper; only the driver is played.
"""

from collections.abc import Mapping

from gpu_agent.probe.health import HealthKeeper, Missed
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, MemoryKind, Model, ModelStatus, Outcome
from tests.scenarios.wording import EPOCH

PROBE_SECONDS = 5.0
"""The agent's own default between two probes."""

_GPU_MB = 81_559
_HOST = Host(
    cpu_logical_cores=32,
    cpu_physical_cores=16,
    memory_total_mb=262_144,
    memory_used_mb=26_214,
    memory_available_mb=235_930,
    platform="linux",
    cpu_percent=5.0,
)


class Box:
    """The hardware under one agent."""

    def __init__(self, name: str, *, gpus: int, models: Mapping[str, ModelStatus]) -> None:
        self.lost: set[int] = set()
        self.models = dict(models)
        self.hung_since: float | None = None
        self._gpus = [self._gpu(name, place) for place in range(gpus)]
        self._name = name
        self._keeper = HealthKeeper()

    def probe_age_seconds(self, now: float) -> float | None:
        """Age of the last good reading."""
        return self._keeper.age_seconds(now)

    def add_gpu(self) -> None:
        """Put one more GPU in."""
        self._gpus.append(self._gpu(self._name, len(self._gpus)))

    def probe(self, now: float) -> Inventory:
        """Read everything, as the agent's probe would."""
        report = self._keeper.observe(self._reading(), now_wall=EPOCH + now, now_mono=now)
        models = tuple(
            Model(model_id=model_id, version="1", status=status) for model_id, status in self.models.items()
        )
        return Inventory(host=_HOST, gpu=report, models=models)

    def _reading(self) -> GpuReport | Missed:
        if self.hung_since is not None:
            return Missed(
                reason="nvml_hung", since=self.hung_since, detail="the NVIDIA driver does not answer"
            )
        if not self._gpus:
            return GpuReport(outcome=Outcome.NO_DRIVER, detail="there is no NVIDIA driver: install one")
        listed = tuple(gpu for place, gpu in enumerate(self._gpus) if place not in self.lost)
        return GpuReport(outcome=Outcome.OK, gpus=listed, driver_version="570.86.15", cuda_version="12.8")

    @staticmethod
    def _gpu(name: str, place: int) -> Gpu:
        return Gpu(
            uuid=f"GPU-{name}-{place}",
            name="NVIDIA H100 80GB HBM3",
            index=place,
            memory_mb=_GPU_MB,
            memory_used_mb=1_024,
            memory_free_mb=_GPU_MB - 1_024,
            memory_kind=MemoryKind.DEDICATED,
            utilization_percent=5.0,
            processes=(),
        )
