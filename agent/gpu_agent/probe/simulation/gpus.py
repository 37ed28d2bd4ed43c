"""GPUs that do not exist, for demos, load and tests: `8xH100-80GB`, `4xA100-80GB:lost#2@60s,2xL4-24GB`.

They have true names and sizes, well-formed UUIDs that stay the same for one machine, and values that drift
with time. Everything follows from the spec, the seed and the time handed in. Load and memory stay below what
would keep a job away, because a simulated node is there to be given one. They report no driver version.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from math import cos, pi

from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.nvml.process import DEADLINE_SECONDS, hung_sentence
from gpu_agent.probe.simulation.faults import apply_faults
from gpu_agent.probe.simulation.spec import GpuPlan, MigProfile, Simulation, parse_spec
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

# GPUs that do not exist, for demos, load and tests: `8xH100-80GB`, `4xA100-80GB:lost#2@60s,2xL4-24GB`.
#
# They have what real ones have: true names and sizes, well-formed UUIDs that stay the same for one
# machine, and figures that drift with time. Everything follows from the spec, the seed and the time
# handed in, so a simulated machine tells the same story twice.
#
# What is asked for is read by `simulation`; what befalls them, by `simulated_faults`. It refuses to look
# busy: load and memory stay under what would keep a job away, because a simulated
# node is there to be given one. And it claims no driver, because there is none.


_STEP_SECONDS = 20.0
_UTILIZATION_PERCENT = (3.0, 65.0)
_MEMORY_SHARE = (0.02, 0.45)
_IDLE_POWER_SHARE = 0.12
_IDLE_TEMPERATURE_C = 31.0
_TEMPERATURE_PER_POWER_SHARE_C = 42.0
_IDLE_CLOCK_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class _Position:
    """One simulated GPU: what stays the same."""

    index: int
    plan: GpuPlan
    seed: str
    uuid: str


class SimulatedGpus:
    """A machine's simulated GPUs. It begins with the first reading: faults count their time from there."""

    def __init__(self, spec: str, *, seed: str) -> None:
        """`seed` tells one machine from another: the same products and seed are the same GPUs, faults or not.

        Raises:
            SimulationError: see `parse`.
        """
        self._simulation: Simulation = parse_spec(spec)
        plans = self._simulation.gpus
        canonical = ",".join(plan.product.label for plan in plans)
        self._places = tuple(
            _Position(index, plan, key, _uuid(key))
            for index, plan in enumerate(plans)
            for key in (f"{seed}\n{canonical}\n{index}",)
        )
        self._began: float | None = None
        self._told_until = -1.0
        """Up to when, in seconds since it began, events were told."""

    def hung_seconds(self, now: float) -> float | None:
        """For how long the driver has not answered at `now`; None while it does."""
        elapsed = self._elapsed(now)
        return max(
            (elapsed - hang.begins for hang in self._simulation.hangs if hang.holds_at(elapsed)), default=None
        )

    def read(self, now: float) -> GpuReport:
        """Their figures at `now`, in seconds of any one clock; each event once."""
        elapsed, told_until = self._elapsed(now), self._told_until
        self._told_until = max(elapsed, told_until)
        return GpuReport(
            outcome=Outcome.OK,
            gpus=tuple(
                apply_faults(gpu, place.plan.faults, elapsed=elapsed, told_until=told_until)
                for place in self._places
                for gpu in _devices(place, now)
            ),
        )

    def _elapsed(self, now: float) -> float:
        if self._began is None:
            self._began = now
        return max(0.0, now - self._began)


def _devices(place: _Position, now: float) -> Iterator[Gpu]:
    """The GPU and its slices. One that is cut tells no use of its own: its slices do the work."""
    whole = _reading(place, now)
    if not place.plan.slices:
        yield whole
        return
    unknowns = dict.fromkeys(
        ("utilization_percent", "memory_utilization_percent"), "told of no GPU with MIG on"
    )
    yield replace(
        whole, mig_enabled=True, utilization_percent=None, memory_utilization_percent=None, unknowns=unknowns
    )
    for number, profile in enumerate(place.plan.slices):
        yield _slice(whole, profile, seed=f"{place.seed}\nslice {number}", now=now)


def _slice(whole: Gpu, profile: MigProfile, *, seed: str, now: float) -> Gpu:
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


def _reading(place: _Position, now: float) -> Gpu:
    product = place.plan.product
    load = _drift(f"{place.seed}\nload", now)
    utilization = _between(_UTILIZATION_PERCENT, load)
    used_mb = round(product.memory_mb * _between(_MEMORY_SHARE, _drift(f"{place.seed}\nmemory", now / 6)))
    power_share = _IDLE_POWER_SHARE + (1 - _IDLE_POWER_SHARE) * utilization / 100
    warmth = _drift(f"{place.seed}\nair", now / 30)
    return Gpu(
        uuid=place.uuid,
        name=product.name,
        index=place.index,
        memory_mb=product.memory_mb,
        memory_used_mb=used_mb,
        memory_free_mb=product.memory_mb - used_mb,
        memory_kind=product.memory_kind,
        compute_capability=product.compute_capability,
        pci_bus_id=f"00000000:{place.index * 2 + 1:02X}:00.0",
        utilization_percent=round(utilization, 1),
        memory_utilization_percent=round(utilization * 0.6, 1),
        temperature_c=round(_IDLE_TEMPERATURE_C + 4 * warmth + _TEMPERATURE_PER_POWER_SHARE_C * power_share),
        power_w=round(product.power_limit_w * power_share, 1),
        power_limit_w=product.power_limit_w,
        clock_sm_mhz=round(product.clock_sm_mhz * _between((_IDLE_CLOCK_SHARE, 1.0), load)),
        clock_memory_mhz=product.clock_memory_mhz,
        ecc_uncorrected=0,
        retirement_pending=False,
        throttle_reasons=(),
        mig_enabled=False,
        processes=(),
    )


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


# A simulated machine as a command sees it that looks once: at the moment when the simulation begins.
#
# What is to happen later does not happen to it. Keeps nothing for a second look.


def read_simulated_once(spec: str, *, seed: str, now: float) -> GpuReport:
    """Read it, with what its first events do to health; `now` in Unix time.

    Raises:
        SimulationError: the line cannot be read.
    """
    gpus = SimulatedGpus(spec, seed=seed)
    if gpus.hung_seconds(now) is not None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=hung_sentence(DEADLINE_SECONDS))
    return HealthTracker().observe(gpus.read(now), now_wall=now, now_mono=now)
