"""GPUs that do not exist, for demos, load and tests: `8xH100-80GB`, `4xA100-80GB,2xL4-24GB`.

They have what real ones have: true names and sizes, well-formed UUIDs that stay the same for one
machine, and figures that drift with time. Everything follows from the spec, the seed and the time
handed in, so a simulated machine tells the same story twice.

It refuses to look busy: load and memory stay under what would keep a job away, because a simulated
node is there to be given one. And it claims no driver, because there is none.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from math import cos, pi

from gpu_agent.probe.products import Product, SimulationError, find
from gpu_agent.wire.inventory import Gpu, GpuReport, MemoryKind, Outcome

MAX_GPUS = 64
"""How many GPUs one simulated machine may have."""

_COUNT_DIGITS = 6  # more than any limit; int() of thousands of digits is refused
_GROUP = re.compile(r"(?:(?P<count>[0-9]+)\s*[x×]\s*)?(?P<product>.*)", re.IGNORECASE)  # noqa: RUF001
_STEP_SECONDS = 20.0
_UTILIZATION_PERCENT = (3.0, 65.0)
_MEMORY_SHARE = (0.02, 0.45)
_IDLE_POWER_SHARE = 0.12
_IDLE_TEMPERATURE_C = 31.0
_TEMPERATURE_PER_POWER_SHARE_C = 42.0
_IDLE_CLOCK_SHARE = 0.2


def parse(spec: str) -> tuple[Product, ...]:
    """One product per GPU that `spec` asks for, in its order.

    Raises:
        SimulationError: the spec is empty, asks for none or too many, or names no known product.
    """
    products: list[Product] = []
    for group in map(str.strip, spec.split(",")):
        if not group:
            raise SimulationError(f"{spec!r} has an empty group: write for example 8xH100-80GB.")
        count, product = _group(group)
        if len(products) + count > MAX_GPUS:
            raise SimulationError(f"{spec.strip()!r} asks for more than {MAX_GPUS} GPUs: ask for fewer.")
        products += [product] * count
    return tuple(products)


def _group(group: str) -> tuple[int, Product]:
    match = _GROUP.fullmatch(group)
    count, wanted = (match["count"], match["product"]) if match else (None, group)
    if not wanted:
        raise SimulationError(f"{group!r} names no GPU: write for example {group}H100-80GB.")
    gpus = int(count[:_COUNT_DIGITS]) if count else 1
    if gpus == 0:
        raise SimulationError(f"{group!r} asks for no GPU at all: write at least 1x.")
    return gpus, find(wanted)


@dataclass(frozen=True, slots=True)
class _Place:
    """One simulated GPU: what stays the same."""

    index: int
    product: Product
    seed: str
    uuid: str


class SimulatedGpus:
    """A machine's simulated GPUs."""

    def __init__(self, spec: str, *, seed: str) -> None:
        """`seed` tells one machine from another: the same spec and seed are the same GPUs.

        Raises:
            SimulationError: see `parse`.
        """
        products = parse(spec)
        canonical = ",".join(product.label for product in products)
        self._places = tuple(
            _Place(index, product, key, _uuid(key))
            for index, product in enumerate(products)
            for key in (f"{seed}\n{canonical}\n{index}",)
        )

    def read(self, now: float) -> GpuReport:
        """Their figures at `now`, in seconds of any one clock."""
        return GpuReport(outcome=Outcome.OK, gpus=tuple(_reading(place, now) for place in self._places))


def _reading(place: _Place, now: float) -> Gpu:
    product = place.product
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
        memory_kind=MemoryKind.DEDICATED,
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
