"""What the reasons of a degraded GPU mean for jobs, by their codes: for the registry, and for the agent.

The agent's whole table of reasons, with sentences and next steps, is `probe.health.reasons`; its tests hold
the two together. Old agents send the same codes.
"""

ONE_GPU_ONLY = frozenset(
    {
        *("fabric_incomplete", "fabric_failed", "fabric_route_unhealthy", "fabric_route_recovery"),
        *("fabric_access_timeout", "fabric_degraded_bandwidth", "fabric_no_partition"),
        *("fabric_misconfigured", "recovery_drain_p2p"),
    }
)
"""The GPU works by itself and not together with others: it serves jobs of one GPU."""

NO_NEW_JOBS = frozenset(
    {
        *("row_remap_pending", "retired_pages_pending", "recovery_drain_and_reset"),
        *(f"xid_{number}" for number in (46, 48, 62, 64, 74, 109, 110, 136, 151, 155, 156, 167, 169)),
        *(f"xid_{number}" for number in range(144, 151)),
    }
)
"""The GPU waits for a reset or a reboot: it finishes its jobs and gets no new one."""
