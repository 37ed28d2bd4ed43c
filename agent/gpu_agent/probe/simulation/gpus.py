"""GPUs that do not exist, for demos, load and tests: `8xH100-80GB`, `4xA100-80GB:lost#2@60s,2xL4-24GB`.

They have true names and sizes, well-formed UUIDs that stay the same for one machine, and values that drift
with time. Everything follows from the spec, the seed and the time handed in. Load and memory stay below what
would keep a job away, because a simulated node is there to be given one. They report no driver version.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from math import cos, inf, pi

from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.nvml.errors import NOT_SUPPORTED
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS, hung_sentence
from gpu_agent.probe.nvml.readings import FIGURES
from gpu_agent.probe.simulation.faults import apply_faults
from gpu_agent.probe.simulation.spec import GpuPlan, MigProfile, Simulation, parse_spec
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

_FIGURES = tuple(each.name for each in fields(Gpu) if each.name in FIGURES)
_STEP_SECONDS = 20.0
_UTILIZATION_PERCENT = (3.0, 65.0)
_MEMORY_SHARE = (0.02, 0.45)
_IDLE_POWER_SHARE = 0.12
_IDLE_TEMPERATURE_C = 31.0
_TEMPERATURE_PER_POWER_SHARE_C = 42.0
_IDLE_CLOCK_SHARE = 0.2
_OF_LINKS = ("fabric_faults", "nvlinks_up", "nvlinks_down", "nvlink_errors")
_PCIE_LANES = 16


@dataclass(frozen=True, slots=True)
class _SimulatedGpu:
    """What stays the same of one simulated GPU."""

    index: int
    plan: GpuPlan
    seed: str
    uuid: str


class SimulatedGpus:
    """A machine's simulated GPUs. It begins with the first reading: faults count their time from there."""

    def __init__(self, spec: str, *, seed: str) -> None:
        """The same GPU models and seed give the same GPUs, whatever their faults.

        Raises:
            SimulationError: see `parse_spec`.
        """
        self._simulation: Simulation = parse_spec(spec)
        plans = self._simulation.gpus
        canonical = ",".join(plan.gpu_model.label for plan in plans)
        self._gpus = tuple(
            _SimulatedGpu(index, plan, key, _uuid(key))
            for index, plan in enumerate(plans)
            for key in (f"{seed}\n{canonical}\n{index}",)
        )
        self._began: float | None = None
        self._sent_until = -1.0
        """Up to when, in seconds since it began, events were reported."""

    def hung_seconds(self, now: float) -> float | None:
        """For how long the driver has not answered at `now`; None while it does."""
        elapsed = self._elapsed(now)
        return max(
            (elapsed - hang.begins for hang in self._simulation.hangs if hang.holds_at(elapsed)), default=None
        )

    def read(self, now: float) -> GpuReport:
        """Their figures at `now`, in seconds of any one clock; each event once."""
        elapsed, sent_until = self._elapsed(now), self._sent_until
        self._sent_until = max(elapsed, sent_until)
        return GpuReport(
            outcome=Outcome.OK,
            gpus=tuple(
                _explained(apply_faults(gpu, one.plan.faults, elapsed=elapsed, sent_until=sent_until))
                for one in self._gpus
                for gpu in _devices(one, now)
            ),
        )

    def seconds_to_change(self, now: float) -> float | None:
        """How long it takes from `now` until a fault begins or ends; None where all is as it stays."""
        elapsed = self._elapsed(now)
        simulation = self._simulation
        faults = [*simulation.hangs]
        faults += (fault for gpu in simulation.gpus for fault in gpu.faults)
        faults += (fault for model in simulation.models or () for fault in model.faults)
        moments = (moment for fault in faults for moment in (fault.begins, fault.ends))
        soonest = min((moment for moment in moments if elapsed < moment < inf), default=None)
        return None if soonest is None else soonest - elapsed

    def _elapsed(self, now: float) -> float:
        if self._began is None:
            self._began = now
        return max(0.0, now - self._began)


def read_simulated_once(spec: str, *, seed: str, now: float) -> GpuReport:
    """Read a simulated machine as a command does that looks once, at the start of the simulation.

    Its first events count for health; later faults do not happen. `now` is Unix time.

    Raises:
        SimulationError: the line cannot be parsed.
    """
    gpus = SimulatedGpus(spec, seed=seed)
    if gpus.hung_seconds(now) is not None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=hung_sentence(DEADLINE_SECONDS))
    return HealthTracker().observe(gpus.read(now), now_wall=now, now_mono=now)


def _devices(one: _SimulatedGpu, now: float) -> Iterator[Gpu]:
    """The GPU and its MIG devices.

    A GPU in MIG mode reports no use of its own: its MIG devices do the work.
    """
    whole = _reading(one, now)
    if not one.plan.mig_profiles:
        yield whole
        return
    unknowns = {
        **whole.unknowns,
        **dict.fromkeys(
            ("utilization_percent", "memory_utilization_percent"), "not available for a GPU in MIG mode"
        ),
    }
    yield replace(
        whole, mig_enabled=True, utilization_percent=None, memory_utilization_percent=None, unknowns=unknowns
    )
    for number, profile in enumerate(one.plan.mig_profiles):
        yield _mig_device(whole, profile, seed=f"{one.seed}\nslice {number}", now=now)


def _mig_device(whole: Gpu, profile: MigProfile, *, seed: str, now: float) -> Gpu:
    used_mb = round(profile.memory_mb * _between(_MEMORY_SHARE, _drift(f"{seed}\nmemory", now / 6)))
    return Gpu(
        uuid=f"MIG-{_uuid(seed).removeprefix('GPU-')}",
        name=f"{whole.name} MIG {profile.name}",
        index=whole.index,
        parent_uuid=whole.uuid,
        memory_mb=profile.memory_mb,
        memory_used_mb=used_mb,
        memory_free_mb=profile.memory_mb - used_mb,
        memory_kind=whole.memory_kind,
        compute_capability=whole.compute_capability,
        pci_bus_id=whole.pci_bus_id,
        processes=(),
    )


def _reading(one: _SimulatedGpu, now: float) -> Gpu:
    gpu_model = one.plan.gpu_model
    load = _drift(f"{one.seed}\nload", now)
    utilization = _between(_UTILIZATION_PERCENT, load)
    used_mb = round(gpu_model.memory_mb * _between(_MEMORY_SHARE, _drift(f"{one.seed}\nmemory", now / 6)))
    power_share = _IDLE_POWER_SHARE + (1 - _IDLE_POWER_SHARE) * utilization / 100
    warmth = _drift(f"{one.seed}\nair", now / 30)
    return Gpu(
        uuid=one.uuid,
        name=gpu_model.name,
        index=one.index,
        memory_mb=gpu_model.memory_mb,
        memory_used_mb=used_mb,
        memory_free_mb=gpu_model.memory_mb - used_mb,
        memory_kind=gpu_model.memory_kind,
        compute_capability=gpu_model.compute_capability,
        pci_bus_id=f"00000000:{one.index * 2 + 1:02X}:00.0",
        utilization_percent=round(utilization, 1),
        memory_utilization_percent=round(utilization * 0.6, 1),
        temperature_c=round(_IDLE_TEMPERATURE_C + 4 * warmth + _TEMPERATURE_PER_POWER_SHARE_C * power_share),
        power_w=round(gpu_model.power_limit_w * power_share, 1),
        power_limit_w=gpu_model.power_limit_w,
        clock_sm_mhz=round(gpu_model.clock_sm_mhz * _between((_IDLE_CLOCK_SHARE, 1.0), load)),
        clock_memory_mhz=gpu_model.clock_memory_mhz,
        ecc_uncorrected=0,
        retirement_pending=False,
        remapped_rows_correctable=0,
        remapped_rows_uncorrectable=0,
        row_remap_failed=False,
        sram_threshold_exceeded=False,
        recovery_action="none",
        throttle_reasons=(),
        compute_mode="default",
        fabric_faults=() if gpu_model.nvlinks else None,
        nvlinks_up=gpu_model.nvlinks or None,
        nvlinks_down=0 if gpu_model.nvlinks else None,
        nvlink_errors=0 if gpu_model.nvlinks else None,
        pcie_generation=gpu_model.pcie_generation,
        pcie_generation_max=gpu_model.pcie_generation,
        pcie_width=_PCIE_LANES,
        pcie_width_max=_PCIE_LANES,
        pcie_replays=0,
        mig_enabled=False,
        processes=(),
        unknowns={} if gpu_model.nvlinks else dict.fromkeys(_OF_LINKS, NOT_SUPPORTED),
    )


def _explained(gpu: Gpu) -> Gpu:
    """Give each figure that it does not have a reason; a GPU that was not read has one for all."""
    if not gpu.health.usable:
        return gpu
    missing = (name for name in _FIGURES if getattr(gpu, name) is None)
    return replace(gpu, unknowns={**dict.fromkeys(missing, "not simulated"), **gpu.unknowns})


def _drift(key: str, now: float) -> float:
    """A value between 0 and 1 that moves smoothly from one step's drawn value to the next's."""
    step, part = divmod(now / _STEP_SECONDS, 1.0)
    ease = (1 - cos(part * pi)) / 2
    return _drawn(key, int(step)) * (1 - ease) + _drawn(key, int(step) + 1) * ease


def _drawn(key: str, step: int) -> float:
    digest = sha256(f"{key}\n{step}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 0xFFFF_FFFF


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _uuid(key: str) -> str:
    digits = sha256(key.encode()).hexdigest()
    return f"GPU-{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"
