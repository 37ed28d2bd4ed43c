"""The registry's metrics for Prometheus: one table of names, labels and meanings, written in its text format.

To add a metric: count it in `counters` (a log event in `EventCounters`, a figure of the nodes in `_count`) or
where it happens, add a row here, and run `make reference`, which writes docs/reference/metrics.md. The values
of every label are bounded, and those that are known begin at 0. This is the only module that imports
`prometheus_client`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client import Counter as ClientCounter
from prometheus_client import Histogram as ClientHistogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from gpu_agent.server.counters import FleetTotals, Histogram, count_fleet
from gpu_agent.server.health import RegistryHealth
from gpu_agent.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "gpu_registry_"

Counts = Iterable[tuple[str | tuple[str, ...], float]]
"""By the value of one label, or by the values of several."""

Reading = float | Histogram | Counts | None
"""The value of a metric; None while there is none."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table; `read` is None where the value does not come from the registry's counters."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "info"]
    meaning: str
    read: Callable[[RegistryHealth, FleetTotals], Reading] | None = None
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        suffix = {"counter": "_total", "info": "_info"}.get(self.kind, "")
        return f"{PREFIX}{self.name}{suffix}"


BUILD = Metric("build", "info", "What runs.", labels=("version",))
REQUESTS = Metric(
    "http_request_seconds",
    "histogram",
    "How long the operators' API took for a request.",
    labels=("method", "route", "status"),
)
FAILURES = Metric(
    "http_failures",
    "counter",
    "Requests that the operators' API answered with 401, for want of a valid token, or 500, for a bug.",
    labels=("status",),
)
_FAILING = ("401", "500")
METRICS = (
    BUILD,
    Metric("ready", "gauge", "1 while every check of /readyz passes.", lambda health, _: health.ready),
    Metric("nodes", "gauge", "Known nodes.", lambda _, fleet: fleet.statuses.items(), ("status",)),
    Metric(
        "nodes_open",
        "gauge",
        "Nodes that may take jobs: ready, connected and not cordoned.",
        lambda _, fleet: fleet.open,
    ),
    Metric(
        "nodes_connected",
        "gauge",
        "Nodes with a live connection.",
        lambda _, fleet: fleet.connected,
    ),
    Metric(
        "nodes_cordoned",
        "gauge",
        "Nodes closed to new jobs by an operator.",
        lambda _, fleet: fleet.cordoned,
    ),
    Metric(
        "nodes_drained",
        "gauge",
        "Nodes that an operator or their owner drains or has drained.",
        lambda _, fleet: fleet.drained,
    ),
    Metric(
        "gpus",
        "gauge",
        "GPUs of known nodes, by their last report.",
        lambda _, fleet: fleet.gpus.items(),
        ("name", "health"),
    ),
    Metric("slots", "gauge", "Slots for jobs.", lambda _, fleet: fleet.slots.items(), ("status",)),
    Metric(
        "slots_occupied",
        "gauge",
        "Slots that jobs occupy.",
        lambda _, fleet: fleet.occupied.items(),
        ("status",),
    ),
    Metric("claims", "gauge", "Claims in force.", lambda _, fleet: fleet.claims),
    Metric(
        "claims_idle",
        "gauge",
        "Claims none of whose GPUs was used for `claim_idle_seconds`.",
        lambda health, _: sum(one.idle_since is not None for one in health.fleet.claim_history.current()),
    ),
    Metric(
        "held_gpus",
        "gauge",
        "GPUs that ended claims hold, since their jobs may still run there.",
        lambda _, fleet: fleet.held_gpus,
    ),
    Metric(
        "cordoned_gpus",
        "gauge",
        "GPUs that operators cordoned.",
        lambda _, fleet: fleet.cordoned_gpus,
    ),
    Metric(
        "gpus_used_without_claim",
        "gauge",
        "GPUs on which programs of no claim run, over two heartbeats or longer.",
        lambda _, fleet: fleet.unclaimed_gpus,
    ),
    Metric(
        "waiting_jobs",
        "gauge",
        "Jobs that wait for capacity.",
        lambda health, _: len(health.fleet.queue()),
    ),
    Metric(
        "longest_wait_seconds",
        "gauge",
        "How long the job that came first has waited for capacity; 0 where none waits.",
        lambda health, _: _longest_wait_seconds(health),
    ),
    Metric(
        "registrations", "counter", "Accepted registrations.", lambda health, _: health.events.registrations
    ),
    Metric(
        "handshake_refusals",
        "counter",
        "Connections of nodes that were refused for what they presented.",
        lambda health, _: [(reason.value, count) for reason, count in health.node_auth.refusals.items()],
        ("reason",),
    ),
    Metric(
        "node_refusals",
        "counter",
        "Refusals sent to nodes (`node_error`), of registrations and of other messages.",
        lambda health, _: health.events.refusals.items(),
        ("code",),
    ),
    Metric(
        "status_changes",
        "counter",
        "Status transitions of nodes; `from` is `none` for a new node.",
        lambda health, _: health.events.status_changes.items(),
        ("from", "to", "reason_code"),
    ),
    Metric(
        "claim_events",
        "counter",
        "Events of claims.",
        lambda health, _: health.events.claims.items(),
        ("event",),
    ),
    Metric(
        "dispatch_failures",
        "counter",
        "Jobs for which there was no node.",
        lambda health, _: health.events.failures,
    ),
    Metric(
        "dispatch_exclusions",
        "counter",
        "Why nodes were excluded for those jobs, node by node.",
        lambda health, _: health.events.exclusions.items(),
        ("reason",),
    ),
    Metric("heartbeats", "counter", "Received heartbeats.", lambda health, _: health.messages.heartbeats),
    Metric(
        "heartbeats_per_second",
        "gauge",
        "Heartbeats in the last full minute.",
        lambda health, _: None if health.meter.last is None else health.meter.last.heartbeats_per_second,
    ),
    Metric(
        "connections",
        "gauge",
        "Open connections of nodes.",
        lambda health, _: health.listener.connections.size,
    ),
    Metric(
        "event_subscribers",
        "gauge",
        "Clients that follow /v1/events.",
        lambda health, _: health.event_log.subscribers,
    ),
    Metric(
        "certificate_expires_timestamp_seconds",
        "gauge",
        "When the certificate of both ports expires, in Unix time; absent without TLS.",
        lambda health, _: None if health.encryption is None else health.encryption.ends_at,
    ),
    Metric(
        "event_loop_lag_seconds",
        "histogram",
        "How late the event loop came to a timer.",
        lambda health, _: health.meter.loop_lag,
    ),
    Metric(
        "select_seconds",
        "histogram",
        "How long it took to choose a node for a job.",
        lambda health, _: health.meter.selections,
    ),
    Metric(
        "select_p99_seconds",
        "gauge",
        "99th percentile of the last full minute.",
        lambda health, _: _select_p99_seconds(health),
    ),
    Metric(
        "saves",
        "counter",
        "Batches of changes that were stored, each before its effects.",
        lambda health, _: health.writer.stored,
    ),
    Metric(
        "save_failures",
        "counter",
        "Commits that failed or had no answer; each is retried.",
        lambda health, _: health.writer.failed,
    ),
    Metric(
        "saves_waiting",
        "gauge",
        "Batches of changes that wait for a commit.",
        lambda health, _: health.loop.unstored,
    ),
    Metric(
        "commit_seconds",
        "histogram",
        "How long the store took for a commit.",
        lambda health, _: health.writer.commits,
    ),
    Metric(
        "notify_lag_seconds",
        "gauge",
        "The age of the oldest event that a receiver of alarms has not got; 0 without any.",
        lambda health, _: [(one.settings.name, one.lag_seconds) for one in health.notifier.receivers],
        ("receiver",),
    ),
    Metric(
        "notify_waiting_events",
        "gauge",
        "Events that wait for a receiver of alarms.",
        lambda health, _: [(one.settings.name, one.waiting) for one in health.notifier.receivers],
        ("receiver",),
    ),
    Metric(
        "notify_messages",
        "counter",
        "Messages that a receiver of alarms took.",
        lambda health, _: [(one.settings.name, one.delivered) for one in health.notifier.receivers],
        ("receiver",),
    ),
    Metric(
        "notify_failures",
        "counter",
        "Messages that a receiver of alarms did not take; what they stood for is sent again.",
        lambda health, _: [(one.settings.name, one.failed) for one in health.notifier.receivers],
        ("receiver",),
    ),
    Metric(
        "notify_missed_events",
        "counter",
        "Events that a message could only count: too many waited, or the event log held them no more.",
        lambda health, _: [(one.settings.name, one.missed) for one in health.notifier.receivers],
        ("receiver",),
    ),
    Metric(
        "notify_delivered_timestamp_seconds",
        "gauge",
        "When a receiver of alarms took its last message, in Unix time; absent before the first.",
        lambda health, _: [
            (one.settings.name, one.delivered_at)
            for one in health.notifier.receivers
            if one.delivered_at is not None
        ],
        ("receiver",),
    ),
    REQUESTS,
    FAILURES,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFigures:
    """What one of several instances counts of itself, by the names of its metrics without `instance_`."""

    leads: bool
    linked: bool
    term: int
    node_connections: int
    takeovers: int
    takeover_seconds: float | None
    link_silent_seconds: float | None
    copy_lag_seconds: float | None


INSTANCE_METRICS = (
    Metric(
        "instance_leads", "gauge", "1 while this instance of several leads; see *Scale* in the documentation."
    ),
    Metric(
        "instance_linked", "gauge", "1 while this instance has a link to the leader; its own counts, too."
    ),
    Metric("instance_term", "gauge", "The term of the leader, as this instance's copy of etcd says."),
    Metric("instance_node_connections", "gauge", "Node connections that this instance holds."),
    Metric("instance_takeovers", "counter", "How often this instance has begun to lead."),
    Metric(
        "instance_takeover_seconds",
        "gauge",
        "How long it took last, from the lease to the first answer; absent before.",
    ),
    Metric(
        "instance_link_silent_seconds",
        "gauge",
        "How long the leader has said nothing on the link; it speaks every second. Absent without a link.",
    ),
    Metric(
        "instance_copy_lag_seconds",
        "gauge",
        "How far this instance's copy of etcd is behind the leader's commits; absent without a link.",
    ),
)
"""Of each instance, whether it leads or not; the others are those of the leader."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` series double the text and say only when the registry started


class RequestMetrics:
    """Measures the requests of the operators' API."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._seconds = ClientHistogram(
            REQUESTS.full_name, REQUESTS.meaning, REQUESTS.labels, registry=self.registry
        )
        self._failures = ClientCounter(
            FAILURES.full_name, FAILURES.meaning, FAILURES.labels, registry=self.registry
        )
        for status in _FAILING:  # a rate needs a sample from before the first
            self._failures.labels(status)

    def observe(self, seconds: float, *, method: str, route: str, status: int) -> None:
        """Note a request; the route is its template, so that its values are bounded."""
        self._seconds.labels(method, route, str(status)).observe(seconds)
        if str(status) in _FAILING:
            self._failures.labels(str(status)).inc()


async def exposition(health: RegistryHealth) -> bytes:
    """Write a registry's metrics in Prometheus' text format; counts the fleet in slices."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(health, await count_fleet(health.fleet.nodes())))
    return generate_latest(registry)


def request_exposition(requests: RequestMetrics) -> bytes:
    """Write what was measured of requests, in the same format."""
    return generate_latest(requests.registry)


def instance_exposition(figures: InstanceFigures) -> bytes:
    """Write what an instance counts of itself, in the same format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_InstanceFamilies(figures))
    return generate_latest(registry)


class _InstanceFamilies(Collector):
    def __init__(self, figures: InstanceFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[MetricFamily]:
        for metric in INSTANCE_METRICS:
            reading = getattr(self._figures, metric.name.removeprefix("instance_"))
            if reading is not None:
                yield _family(metric, reading)


class _Families(Collector):
    def __init__(self, health: RegistryHealth, fleet: FleetTotals) -> None:
        self._health, self._fleet = health, fleet

    def collect(self) -> Iterator[MetricFamily]:
        yield InfoMetricFamily(f"{PREFIX}{BUILD.name}", BUILD.meaning, {"version": __version__})
        for metric in METRICS:
            reading = None if metric.read is None else metric.read(self._health, self._fleet)
            if reading is not None:
                yield _family(metric, reading)


def _family(metric: Metric, reading: float | Histogram | Counts) -> MetricFamily:
    name = f"{PREFIX}{metric.name}"
    if isinstance(reading, Histogram):
        buckets = [(_bound(bound), count) for bound, count in reading.cumulative()]
        return HistogramMetricFamily(name, metric.meaning, buckets=buckets, sum_value=reading.sum)
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    if isinstance(reading, int | float):
        return kind(name, metric.meaning, value=reading)
    family = kind(name, metric.meaning, labels=metric.labels)
    for values, count in sorted(((key,) if isinstance(key, str) else key, count) for key, count in reading):
        family.add_metric(values, count)
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


def _longest_wait_seconds(health: RegistryHealth) -> float:
    now = health.monotonic()
    return max((now - waiting.since for waiting in health.fleet.queue()), default=0.0)


def _select_p99_seconds(health: RegistryHealth) -> float | None:
    last = health.meter.last
    if last is None or last.select_p99_us is None:
        return None
    return round(last.select_p99_us / 1e6, 9)
