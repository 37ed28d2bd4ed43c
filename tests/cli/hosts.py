"""A small machine, for tests of what is shown of machines."""

from gpu_agent.wire.inventory import Host

HOST = Host(
    cpu_logical_cores=4,
    cpu_physical_cores=2,
    memory_total_mb=8192,
    memory_used_mb=None,
    memory_available_mb=None,
    platform="linux",
)
