"""GPU models that can be simulated, with the names and sizes that their drivers report.

A GPU model is found by its label (`H100-80GB`), or by its family alone where that has one size (`H100`), in
any case, with or without the dash, the `GB` and spaces. An unknown name is answered with the nearest label.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpu_agent.wire.inventory import MemoryKind


class SimulationError(ValueError):
    """The spec cannot be simulated: the fault of its author. The sentence says what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """One model of GPU. Memory as NVML reports it (MiB), power in W, clocks in MHz."""

    label: str
    name: str
    memory_mb: int
    compute_capability: str
    power_limit_w: float
    clock_sm_mhz: int
    clock_memory_mhz: int
    memory_kind: MemoryKind = MemoryKind.DEDICATED
    mig: bool = False
    """Whether it has MIG."""
    nvlinks: int = 0
    """How many link it to others, through NVSwitches."""

    @property
    def pcie_generation(self) -> int:
        """The fastest that GPUs of its age have."""
        major = int(self.compute_capability.partition(".")[0])
        return _PCIE_GENERATIONS.get(major, _NEWEST_PCIE)


_PCIE_GENERATIONS = {7: 3, 8: 4}
"""Compute capability → generation of PCIe, but for newer GPUs."""
_NEWEST_PCIE = 5

_TABLE = """
B200-192GB    | NVIDIA B200              | 183359 | 10.0 | 1000 | 1965 | 3996 | mig | 18 links
H200-141GB    | NVIDIA H200              | 143771 |  9.0 |  700 | 1980 | 3201 | mig | 18 links
GH200-96GB    | NVIDIA GH200 480GB       |  97871 |  9.0 |  900 | 1980 | 2619 | mig
H100-80GB     | NVIDIA H100 80GB HBM3    |  81559 |  9.0 |  700 | 1980 | 2619 | mig | 18 links
A100-80GB     | NVIDIA A100-SXM4-80GB    |  81920 |  8.0 |  400 | 1410 | 1593 | mig
A100-40GB     | NVIDIA A100-SXM4-40GB    |  40960 |  8.0 |  400 | 1410 | 1215 | mig
L40S-48GB     | NVIDIA L40S              |  46068 |  8.9 |  350 | 2520 | 9001
A40-48GB      | NVIDIA A40               |  46068 |  8.6 |  300 | 1740 | 7251
A10-24GB      | NVIDIA A10               |  23028 |  8.6 |  150 | 1695 | 6251
L4-24GB       | NVIDIA L4                |  23034 |  8.9 |   72 | 2040 | 6251
GB10-128GB    | NVIDIA GB10              | 122570 | 12.1 |  140 | 2418 | 8533 | unified
V100-32GB     | Tesla V100-SXM2-32GB     |  32768 |  7.0 |  300 | 1530 |  877
V100-16GB     | Tesla V100-SXM2-16GB     |  16384 |  7.0 |  300 | 1530 |  877
T4-16GB       | Tesla T4                 |  15360 |  7.5 |   70 | 1590 | 5001
RTX5090-32GB  | NVIDIA GeForce RTX 5090  |  32607 | 12.0 |  575 | 3090 | 14001
RTX4090-24GB  | NVIDIA GeForce RTX 4090  |  24564 |  8.9 |  450 | 3105 | 10501
RTX3090-24GB  | NVIDIA GeForce RTX 3090  |  24576 |  8.6 |  350 | 2100 | 9751
"""


def _parse_table() -> Iterator[GpuModel]:
    for line in _TABLE.strip().splitlines():
        label, name, memory, capability, power, sm, memory_clock, *traits = map(str.strip, line.split("|"))
        yield GpuModel(
            label=label,
            name=name,
            memory_mb=int(memory),
            compute_capability=capability,
            power_limit_w=float(power),
            clock_sm_mhz=int(sm),
            clock_memory_mhz=int(memory_clock),
            memory_kind=MemoryKind.UNIFIED if "unified" in traits else MemoryKind.DEDICATED,
            mig="mig" in traits,
            nvlinks=18 if "18 links" in traits else 0,
        )


GPU_MODELS: tuple[GpuModel, ...] = tuple(_parse_table())
"""Every GPU model that can be simulated."""


def find_gpu_model(text: str) -> GpuModel:
    """The GPU model that `text` names.

    Raises:
        SimulationError: none, or more than one; the sentence says what to write instead.
    """
    wanted = _bare(text)
    matches = [model for model in GPU_MODELS if wanted in (_bare(model.label), _family(model))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        labels = " or ".join(model.label for model in matches)
        raise SimulationError(f"{text.strip()!r} comes in several sizes: write {labels}.")
    by_bare = {_bare(model.label): model.label for model in GPU_MODELS}
    from difflib import get_close_matches  # noqa: PLC0415 - for a mistake alone

    nearest = by_bare[get_close_matches(wanted, by_bare, n=1, cutoff=0.0)[0]]
    accepted = ", ".join(model.label for model in GPU_MODELS)
    raise SimulationError(
        f"{text.strip()!r} is no GPU that can be simulated; the nearest is {nearest}. Accepted: {accepted}."
    )


def _bare(text: str) -> str:
    bare = "".join(letter for letter in text.lower() if letter.isalnum())
    return bare.removesuffix("gb")


def _family(model: GpuModel) -> str:
    return _bare(model.label.partition("-")[0])
