"""What Prometheus is told, and that docs/metrics.md says the same."""

import re
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gpu_agent.server import metrics
from gpu_agent.server.counters import EventCounters, FleetCounters, Histogram, Performance
from gpu_agent.server.health import Figures
from gpu_agent.version import __version__

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
LAST = Performance(
    beats_per_second=7.5, loop_lag_ms=1.0, loop_lag_p50_ms=1.0, loop_lag_p99_ms=1.0, select_p99_us=250.0
)


def figures(*, last_period: Performance | None = LAST) -> Figures:
    headcount = FleetCounters(statuses=Counter(ready=3, offline=1))
    headcount.looks[("NVIDIA L4", "NVIDIA L4"), ("ok", "lost")] = 4
    tally = EventCounters()
    tally.refusals["GPU_REQUIRED"] = 2
    tally.status_changes["ready", "offline", "heartbeat_timeout"] = 1
    tally.exclusions["cordoned"] = 5
    lag = Histogram((0.01, 0.1))
    for seconds in (0.005, 0.05, 3.0):
        lag.add(seconds)
    return Figures(
        ready=True,
        headcount=headcount,
        tally=tally,
        beats=12,
        connections=3,
        listeners=1,
        last_period=last_period,
        loop_lag=lag,
        selections=Histogram((0.001,)),
        saves_kept=6,
        saves_failed=1,
        saves_waiting=2,
        commits=Histogram((0.01,)),
        certificate_ends_at=1.8e9,
    )


def samples() -> dict[str, float]:
    told = metrics.exposition(figures()).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def test_figures_are_told_with_their_labels() -> None:
    told = samples()
    assert told["gpu_registry_nodes[('status', 'ready')]"] == 3
    assert told["gpu_registry_gpus[('health', 'lost'), ('name', 'NVIDIA L4')]"] == 4
    assert told["gpu_registry_registrations_refused_total[('code', 'GPU_REQUIRED')]"] == 2
    change = "[('from', 'ready'), ('reason_code', 'heartbeat_timeout'), ('to', 'offline')]"
    assert told[f"gpu_registry_status_changes_total{change}"] == 1
    assert told["gpu_registry_beats_total[]"] == 12
    assert told["gpu_registry_certificate_ends_timestamp_seconds[]"] == 1.8e9
    assert told["gpu_registry_beats_per_second[]"] == 7.5
    assert told["gpu_registry_select_p99_seconds[]"] == 0.00025
    assert told[f"gpu_registry_build_info[('version', '{__version__}')]"] == 1


def test_a_histogram_counts_up_to_each_bound() -> None:
    told = samples()
    counts = [
        told[f"gpu_registry_event_loop_lag_seconds_bucket[('le', '{le}')]"] for le in ("0.01", "0.1", "+Inf")
    ]
    assert counts == [1, 2, 3]
    assert told["gpu_registry_event_loop_lag_seconds_count[]"] == 3
    assert told["gpu_registry_event_loop_lag_seconds_sum[]"] == 3.055


def test_what_no_period_has_measured_yet_is_not_told() -> None:
    told = metrics.exposition(figures(last_period=None)).decode()
    assert "beats_per_second" not in told
    assert "select_p99" not in told


def test_the_document_lists_every_figure_as_it_is_told() -> None:
    written = DOCUMENT.read_text(encoding="utf-8").split("\n## Figures\n")[1].split("\n## ")[0]
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in written.strip().splitlines()[2:]]
    listed = {
        name.strip("`"): (kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in table
    }
    told = {}
    for family in text_string_to_metric_families(metrics.exposition(figures()).decode()):
        counter = family.type == "counter"
        labels = frozenset(name for sample in family.samples for name in sample.labels if name != "le")
        kind = "info" if family.name.endswith("_info") else family.type
        told[f"{family.name}_total" if counter else family.name] = (kind, labels, family.documentation)
    assert listed == told


def test_names_begin_alike_and_say_their_unit() -> None:
    families = text_string_to_metric_families(metrics.exposition(figures()).decode())
    names = [family.name for family in families]
    assert all(name.startswith(metrics.PREFIX) for name in names)
    assert not [name for name in names if re.search(r"_(ms|us|milliseconds|mb)$", name)]
