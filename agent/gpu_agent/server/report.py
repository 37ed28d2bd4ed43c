"""What the registry logs of itself in regular intervals: how it does, and what dispatches failed on (§8)."""

from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.dispatch_views import ExclusionsView
from gpu_agent.server.service import RegistryService

_LOG = EventLog("registry")


def report(service: RegistryService) -> None:
    """Log the figures since the last report, and each minute that ended since with failed dispatches."""
    figures, size = service.performance(), service.size
    _LOG.info(
        "performance",
        beats_per_second=figures.beats_per_second,
        loop_lag_ms=figures.loop_lag_ms,
        loop_lag_p50_ms=figures.loop_lag_p50_ms,
        loop_lag_p99_ms=figures.loop_lag_p99_ms,
        select_p99_us=figures.select_p99_us,
        nodes=size.nodes,
        connections=size.connections,
    )
    for minute in service.finished_exclusions():
        _report_exclusions(minute)


def _report_exclusions(minute: ExclusionsView) -> None:
    _LOG.info(
        "dispatch_exclusions",
        window_start=minute.window_start,
        failed=minute.failed,
        counts=minute.counts,
        examples={reason: [one.node_id for one in nodes] for reason, nodes in minute.examples.items()},
        last_jobs=minute.last_jobs,
    )
