"""What AMD's compute driver (KFD) says in sysfs: which GPUs can compute, and which programs use them.

The files are those of `drivers/gpu/drm/amd/amdkfd/kfd_topology.c` and `kfd_process.c` of the kernel. A GPU
that is partitioned (SPX, DPX, CPX) has a node for each part.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from gpu_agent.probe import pci
from gpu_agent.probe.collectors.sysfs import MIB, list_folder, read_number, read_text
from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import GpuProcess

_FOLDER = Path("class", "kfd", "kfd")
_OWN_MEMORY = (1, 2)
"""`heap_type` of memory on the card."""
_FUNCTION_BITS = 0x7


@dataclass(frozen=True, slots=True)
class ComputeNode:
    """A GPU, or a part of one, to which programs can give work."""

    gpu_id: int
    address: str
    """Of its card on the PCI bus."""
    address_of_card: str
    """The same with function 0: the kernel counts parts in the bits of the function."""
    unique_id: int
    """0 where it has none."""
    memory_mb: int | None
    with_processor: bool
    """It is one chip with the processor."""


def topology_generation(sys_dir: Path) -> int | None:
    """A number that changes whenever the nodes do, such as when a card gets other partitions."""
    return read_number(sys_dir / _FOLDER / "topology" / "generation_id")


def compute_nodes(sys_dir: Path) -> tuple[ComputeNode, ...]:
    """The nodes that can compute, in the kernel's order."""
    folders = list_folder(sys_dir / _FOLDER / "topology" / "nodes")
    numbered = sorted((each for each in folders if each.name.isdecimal()), key=lambda each: int(each.name))
    return tuple(node for folder in numbered if (node := _node(folder)))


def compute_processes(sys_dir: Path, gpu_ids: Iterable[int]) -> Mapping[int, tuple[GpuProcess, ...]] | None:
    """`gpu_id` → the programs that hold its memory or have a queue; `None` where there is no list."""
    folder = sys_dir / _FOLDER / "proc"
    if not folder.is_dir():
        return None
    wanted = frozenset(gpu_ids)
    users: defaultdict[int, list[GpuProcess]] = defaultdict(list)
    for process in list_folder(folder):
        if not process.name.isdecimal():
            continue
        working = {read_number(queue / "gpuid") for queue in list_folder(process / "queues")}
        for gpu_id in wanted:
            held = read_number(process / f"vram_{gpu_id}")
            if held or gpu_id in working:
                memory_mb = None if held is None else held // MIB
                users[gpu_id].append(GpuProcess(pid=int(process.name), memory_mb=memory_mb))
    return {gpu_id: tuple(users[gpu_id]) for gpu_id in wanted}


def _node(folder: Path) -> ComputeNode | None:
    gpu_id = read_number(folder / "gpu_id")
    facts = _properties(folder / "properties")
    if not gpu_id or facts.get("simd_count", 0) <= 0 or facts.get("vendor_id", pci.AMD) != pci.AMD:
        return None
    domain, location = facts.get("domain", 0), facts.get("location_id", 0)
    bus, slot = location >> 8 & 0xFF, location >> 3 & 0x1F
    begin = f"{domain:04x}:{bus:02x}:{slot:02x}."
    banks = [_properties(bank / "properties") for bank in list_folder(folder / "mem_banks")]
    memory = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in _OWN_MEMORY)
    return ComputeNode(
        gpu_id=gpu_id,
        address=f"{begin}{location & _FUNCTION_BITS}",
        address_of_card=f"{begin}0",
        unique_id=facts.get("unique_id", 0),
        memory_mb=memory // MIB or None,
        with_processor=facts.get("cpu_cores_count", 0) > 0,
    )


def _properties(path: Path) -> Mapping[str, int]:
    """Lines of a name and a number."""
    facts = {}
    for line in (read_text(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal() and value.isascii():
            facts[name] = int(value[:20])
    return facts
