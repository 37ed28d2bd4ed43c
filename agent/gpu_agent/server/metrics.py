"""The registry's figures for Prometheus: names, units and labels, documented in docs/metrics.md.

Writes figures that others have taken; measures and counts nothing. Every label's values are
bounded. The only module that knows Prometheus.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpu_agent.server.counters import EventCounters, FleetCounters, Histogram
from gpu_agent.server.health import Figures
from gpu_agent.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "gpu_registry_"

Counts = Iterable[tuple[str | tuple[str, ...], int]]
"""By the value of one label, or by the values of several."""


def exposition(figures: Figures) -> bytes:
    """Write the figures as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(figures))
    return generate_latest(registry)


class _Told(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield InfoMetricFamily(f"{PREFIX}build", "What runs.", {"version": __version__})
        yield _gauge("ready", "1 while every check of /readyz holds.", int(figures.ready))
        yield from _of_fleet(figures.headcount)
        yield from _of_past(figures.tally)
        yield from _of_registry(figures)
        yield from _of_store(figures)


def _of_fleet(headcount: FleetCounters) -> Iterator[Metric]:
    others = headcount.others
    yield _gauges("nodes", "Known nodes.", headcount.statuses.items(), "status")
    yield _gauge("nodes_connected", "Nodes with a live connection.", others["connected"])
    yield _gauge("nodes_cordoned", "Nodes closed to new jobs by an operator.", others["cordoned"])
    yield _gauge("drain_wishes", "Nodes that somebody wants emptied.", others["drains"])
    yield _gauges("gpus", "GPUs of known nodes, as last told.", headcount.gpus.items(), "name", "health")
    yield _gauges("places", "Places for jobs.", headcount.places.items(), "status")
    yield _gauges("places_occupied", "Places that are taken.", headcount.occupied.items(), "status")
    yield _gauge("claims", "Claims that are held.", others["claims"])


def _of_past(tally: EventCounters) -> Iterator[Metric]:
    yield _counter("registrations", "Accepted registrations.", tally.registrations)
    yield _counters("registrations_refused", "Refused registrations.", tally.refusals.items(), "code")
    yield _counters(
        "status_changes",
        "Changes of nodes' statuses; `from` is `none` for a node that had none.",
        tally.status_changes.items(),
        "from",
        "to",
        "reason_code",
    )
    yield _counters("claim_events", "What became of claims.", tally.claims.items(), "event")
    yield _counter("dispatch_failures", "Jobs for which there was no node.", tally.failures)
    yield _counters(
        "dispatch_exclusions",
        "Why those found none, node by node.",
        tally.exclusions.items(),
        "reason",
    )


def _of_registry(figures: Figures) -> Iterator[Metric]:
    yield _counter("beats", "Beats received.", figures.beats)
    yield _gauge("connections", "Open connections of nodes.", figures.connections)
    yield _gauge("event_listeners", "Clients that follow /v1/events.", figures.listeners)
    if figures.certificate_ends_at is not None:
        meaning = "When the certificate of both ports ends, in Unix time; not told without TLS."
        yield _gauge("certificate_ends_timestamp_seconds", meaning, figures.certificate_ends_at)
    yield _histogram("event_loop_lag_seconds", "How late the event loop came to a timer.", figures.loop_lag)
    yield _histogram("select_seconds", "How long it took to find a place for a job.", figures.selections)
    last = figures.last_period
    if last is not None:
        yield _gauge("beats_per_second", "Beats in the last full minute.", last.beats_per_second)
        if last.select_p99_us is not None:
            seconds = round(last.select_p99_us / 1e6, 9)
            yield _gauge("select_p99_seconds", "99th percentile of the last full minute.", seconds)


def _of_store(figures: Figures) -> Iterator[Metric]:
    yield _counter("saves", "Outputs of the fleet that are stored.", figures.saves_kept)
    yield _counter(
        "save_failures", "Commits that failed; what they held is stored by a later one.", figures.saves_failed
    )
    yield _gauge("saves_waiting", "Outputs of the fleet that wait for the store.", figures.saves_waiting)
    yield _histogram("commit_seconds", "How long the store took for a commit.", figures.commits)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}{name}", meaning, value=value)


def _gauges(name: str, meaning: str, counts: Counts, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", meaning, labels=labels)
    _fill(family, counts)
    return family


def _counters(name: str, meaning: str, counts: Counts, *labels: str) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}{name}", meaning, labels=labels)
    _fill(family, counts)
    return family


def _fill(family: GaugeMetricFamily | CounterMetricFamily, counts: Counts) -> None:
    for values, count in sorted(((key,) if isinstance(key, str) else key, count) for key, count in counts):
        family.add_metric(values, count)


def _histogram(name: str, meaning: str, measured: Histogram) -> Metric:
    buckets = [(_bound(bound), count) for bound, count in measured.cumulative()]
    return HistogramMetricFamily(f"{PREFIX}{name}", meaning, buckets=buckets, sum_value=measured.sum)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)
