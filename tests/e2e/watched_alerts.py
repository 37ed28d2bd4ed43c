"""What a real Prometheus says of faults that are injected: which alert fired after how long, and until when.

By default the times of its rules are divided by 60. `WatchedAlerts.inject` lays a fault and waits for
nothing; `watch` waits for its alert, `fix` ends the fault and waits for the end of its alert, and `rows`
says how long each took.
"""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.programs import eventually, free_port
from tests.waiting import patience
from tools import alert_rules

PROMETHEUS = shutil.which("prometheus")
NO_PROMETHEUS = "prometheus is missing: apt-get install -y --no-install-recommends prometheus"
SHORTER = 60
"""What the rules' times are divided by."""
AGENT_SETTINGS = """
probe_interval_seconds = 0.3
metrics_listen = "127.0.0.1:{port}"

[advanced]
deadline_seconds = 0.5
nvml_stale_after_seconds = 4
"""
"""Of an agent whose metrics are scraped: a hung driver shows within seconds."""
_DELIVERED_SECONDS = 1800.0
"""How long an alert may take by the delivered rules."""

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is expected to fire, with some of its labels."""

    name: str
    labels: Labels

    def matches(self, labels: Labels) -> bool:
        """Whether these are the labels of such an alert."""
        wanted = {"alertname": self.name, **self.labels}
        return all(labels.get(name) == value for name, value in wanted.items())


class Prometheus:
    """A Prometheus of its own, which scrapes and evaluates each second."""

    def __init__(self, folder: Path, *jobs: Mapping[str, object], shorter: int = SHORTER) -> None:
        self.shorter = shorter
        rules = folder / "alerts.yml"
        rules.write_text(alert_rules.text(shorter=shorter), encoding="utf-8")
        document = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": jobs,
        }
        config = folder / "prometheus.yml"
        config.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, **query: str) -> Any:  # noqa: ANN401 - as Prometheus answers
        """What its API answers; None while it does not."""
        url = f"{self._url}/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=patience(5)) as answer:  # noqa: S310 - loopback, ours
                return json.load(answer)["data"]
        except OSError:
            return None

    def series(self, expr: str) -> list[Any]:
        """The series that an expression has now."""
        found = self.ask("query", query=expr)
        return [] if found is None else list(found["result"])

    def had_data(self, expr: str, *, seconds: float) -> bool:
        """Whether an expression had a series in the last seconds."""
        now = time.time()
        found = self.ask("query_range", query=expr, start=f"{now - seconds}", end=f"{now}", step="1")
        return bool(found and found["result"])

    def alerts(self) -> list[Labels]:
        """The labels of each alert that fires."""
        found = self.ask("alerts") or {"alerts": []}
        return [one["labels"] for one in found["alerts"] if one["state"] == "firing"]

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(patience(10))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(patience(5))
        self._log.close()


def job(name: str, *addresses: str, **options: object) -> Mapping[str, object]:
    """A scrape job, as Prometheus' settings state it."""
    return {"job_name": name, "static_configs": [{"targets": addresses}], **options}


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """A fault, the alert that it must lead to, and when it began, in monotonic seconds."""

    fault: str
    alert: Alert
    at: float
    lasts: bool
    """Whether it goes on until it is ended; else it was over at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one fault, in seconds."""

    fault: str
    alert: str
    fired_after: float
    gone_after: float | None
    """Since the fault was over; None where nobody waited for that."""
    delivered_after: float
    """Computed: until it fires by the delivered rules."""

    def __str__(self) -> str:
        gone = "" if self.gone_after is None else f"{self.gone_after:.1f} s"
        fired, delivered = f"{self.fired_after:.1f} s", f"{self.delivered_after:.0f} s"
        return f"| {self.fault} | `{self.alert}` | {fired} | {gone} | {delivered} |"


HEAD = (
    "| fault | alert | fired after | gone after its end | computed for the delivered rules |",
    "|---|---|---|---|---|",
)
"""Of a table of rows."""


class WatchedAlerts:
    """Faults that are injected, and what Prometheus says of each."""

    def __init__(self, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self.injected: list[Injected] = []
        self.seen: dict[Injected, float] = {}
        """When each fault's alert fired first, in monotonic seconds."""
        self.others: set[str] = set()
        """Alerts that fired for no fault that was injected."""
        self._gone: dict[Injected, float] = {}
        """How long an alert still fired after its fault had ended."""

    def inject(
        self, fault: str, alert: Alert, lay: Callable[[], object] = lambda: None, *, lasts: bool = True
    ) -> None:
        """Lay a fault from which an alert must follow; by default one that was laid before."""
        lay()
        self.injected.append(Injected(fault, alert, time.monotonic(), lasts))

    def watch(self, *faults: str, within_seconds: float) -> None:
        """Look until the alerts of these faults have fired, by default of all; fails where one is silent."""
        awaited = [one for one in self.injected if not faults or one.fault in faults]

        def all_fired() -> bool:
            now, firing = time.monotonic(), self.prometheus.alerts()
            for one in self.injected:
                fires = any(one.alert.matches(labels) for labels in firing)
                if one not in self.seen and fires:
                    self.seen[one] = now
                elif one in self.seen and not one.lasts and not fires:
                    self._gone.setdefault(one, now - one.at)
            expected = [one.alert for one in self.injected]
            self.others |= {
                labels["alertname"] for labels in firing if not any(one.matches(labels) for one in expected)
            }
            return all(one in self.seen for one in awaited)

        missing = "an alert for each fault"
        try:
            eventually(lambda: all_fired() or None, within_seconds=self._limit(within_seconds), what=missing)
        except AssertionError as late:
            silent = [f"{one.fault}: {one.alert}" for one in awaited if one not in self.seen]
            raise AssertionError(f"no alert for {silent}; firing: {self.prometheus.alerts()}") from late

    def fix(self, *faults: str, end: Callable[[], object], within_seconds: float) -> None:
        """End these faults and wait until their alerts are gone; fails where one stays, or went before."""
        awaited = [one for one in self.injected if one.fault in faults]
        firing = self.prometheus.alerts()
        for one in awaited:
            assert not one.lasts or any(one.alert.matches(labels) for labels in firing), one
        ended_at = time.monotonic()
        end()

        def all_gone() -> bool:
            now, firing = time.monotonic(), self.prometheus.alerts()
            for one in awaited:
                if one not in self._gone and not any(one.alert.matches(labels) for labels in firing):
                    self._gone[one] = now - (ended_at if one.lasts else one.at)
            return all(one in self._gone for one in awaited)

        limit = self._limit(within_seconds)
        eventually(all_gone, within_seconds=limit, what=f"the end of the alerts for {faults}")

    def _limit(self, seconds: float) -> float:
        return seconds if self.prometheus.shorter > 1 else _DELIVERED_SECONDS

    def rows(self) -> Iterator[Row]:
        """What became of each fault, in the order in which they were laid."""
        rules = {rule.name: rule for group in alert_rules.GROUPS for rule in group.rules}
        for one in sorted(self.seen, key=lambda injected: injected.at):
            seconds, rule = self.seen[one] - one.at, rules[one.alert.name]
            yield Row(
                fault=one.fault,
                alert=rule.name,
                fired_after=seconds,
                gone_after=self._gone.get(one),
                delivered_after=seconds + alert_rules.added_seconds(rule, shorter=self.prometheus.shorter),
            )
