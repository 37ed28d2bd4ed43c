"""The host in words, fact by fact: as its control group may use it, and as the machine has it.

What is not known is left out, never guessed.
"""

from collections.abc import Iterator

from gpu_agent.cli.lines import Line, line
from gpu_agent.cli.probe.gpu_sheet import gib
from gpu_agent.wire.inventory import CacheDisk, Host, Inventory

Fact = tuple[str, Line]
_GIB = 1 << 30


def host_facts(inventory: Inventory) -> Iterator[Fact]:
    """Yield names and what stands behind them."""
    host = inventory.host
    for name, words in (
        ("cores", _cores(host)),
        ("memory", _memory(host)),
        ("system", ", ".join(_system(host))),
        *(("disk", _disk(disk)) for disk in host.cache_disks),
        ("features", ", ".join(_features(inventory))),
    ):
        if words:
            yield name, line(words)


def _cores(host: Host) -> str:
    cores = f"{host.cpu_logical_cores}"
    if host.machine_logical_cores not in (None, host.cpu_logical_cores):
        cores += f" of the machine's {host.machine_logical_cores}"
    elif host.cpu_physical_cores not in (None, host.cpu_logical_cores):
        cores += f", {host.cpu_physical_cores} of them physical"
    used = "" if host.cpu_percent is None else f", {host.cpu_percent:.0f}% in use"
    return cores + used + ("" if host.load_1m is None else f", load {host.load_1m:.1f}")


def _memory(host: Host) -> str:
    memory = f"{gib(host.memory_total_mb)} GiB"
    if host.machine_memory_total_mb not in (None, host.memory_total_mb):
        memory += f" of the machine's {gib(host.machine_memory_total_mb or 0)} GiB"
    if host.memory_available_mb is None:
        return memory
    return f"{memory}, {gib(host.memory_available_mb)} GiB available"


def _system(host: Host) -> Iterator[str]:
    if host.os:
        yield host.os
    if host.kernel:
        yield f"kernel {host.kernel}"
    if host.virtualization and host.virtualization != "none":
        yield f"under {host.virtualization}"


def _disk(disk: CacheDisk) -> str:
    return f"{disk.free_bytes / _GIB:.0f} of {disk.total_bytes / _GIB:.0f} GiB free at {disk.path}"


def _features(inventory: Inventory) -> Iterator[str]:
    yield from (name for name, has in inventory.features_supported.items() if has)
    yield from inventory.advanced_features
