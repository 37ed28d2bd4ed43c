"""How a simulated GPU is cut into MIG slices: `7x1g.10gb`, `3g.40gb+2x1g.10gb`.

A GPU has so many parts for computing and so much memory; slices that ask for more of either are
refused with what is left. It knows sizes, not the driver's rules of where a slice may lie.
"""

import re
from dataclasses import dataclass

from gpu_agent.probe.products import Product, SimulationError

COMPUTE_SLICES = 7
"""Into how many parts for computing every GPU with MIG is cut, at most."""
_CUT = re.compile(
    r"(?:(?P<count>[0-9]{1,3})\s*[x×]\s*)?(?P<compute>[1-7])g\.(?P<gb>[0-9]{1,4})gb",  # noqa: RUF001
    re.IGNORECASE,
)
_MIB_PER_GB = 1024
_LEFT_BY_THE_DRIVER = 0.97


@dataclass(frozen=True, slots=True)
class Profile:
    """The size of one slice."""

    compute: int
    memory_gb: int

    @property
    def name(self) -> str:
        """As the driver writes it."""
        return f"{self.compute}g.{self.memory_gb}gb"

    @property
    def memory_mb(self) -> int:
        """MiB; of a true slice, too, a little goes to the driver."""
        return round(self.memory_gb * _MIB_PER_GB * _LEFT_BY_THE_DRIVER)


def slices(text: str, product: Product) -> tuple[Profile, ...]:
    """One profile for each slice.

    Raises:
        SimulationError: it cannot be read, or the product has not so much to cut.
    """
    if not product.mig:
        raise SimulationError(f"{product.label} cannot be cut into slices: leave out /{text.strip()[:40]}.")
    found: list[Profile] = []
    for part in map(str.strip, text.split("+")):
        match = _CUT.fullmatch(part)
        if match is None:
            raise SimulationError(
                f"{part[:40]!r} is no slice: write for example 7x1g.10gb or 3g.40gb+4g.40gb."
            )
        profile = Profile(int(match["compute"]), int(match["gb"]))
        if profile.memory_gb == 0:
            raise SimulationError(f"{part!r} has no memory: write for example 1g.10gb.")
        found += [profile] * int(match["count"] or 1)
    compute, memory_mb = sum(each.compute for each in found), sum(each.memory_mb for each in found)
    if not found or compute > COMPUTE_SLICES or memory_mb > product.memory_mb:
        raise SimulationError(
            f"{text.strip()[:40]!r} asks for {compute} parts and {sum(each.memory_gb for each in found)} GB: "
            f"{product.label} has {COMPUTE_SLICES} and {round(product.memory_mb / _MIB_PER_GB)} GB."
        )
    return tuple(found)
