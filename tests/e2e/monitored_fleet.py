"""A real Prometheus that scrapes a real registry and four agents, with rules whose times are a sixtieth.

Three agents read GPUs of the fake NVML library, one AMD's recorded machine. `Monitored.inject` lays a fault
and waits for nothing; `Monitored.watch` waits for its alert, and `Monitored.rows` says how long that took.
"""

import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.machines import unpack
from tests.programs import Agent, Registry, eventually, free_port
from tests.waiting import patience
from tools import alert_rules

PROMETHEUS = shutil.which("prometheus")
GPUS = 4
"""Of each machine with NVIDIA's."""
SHORTER = 60
"""What the rules' times are divided by."""
AMD_MACHINE = "mi300x-spx"
DEAD_RECEIVER = {"name": "pager", "command": ["false"], "events": ["job_assigned"], "group_seconds": 0}
"""A receiver of alarms that takes nothing."""
_CONFIGURATION = """
probe_interval_seconds = 0.3
metrics_listen = "127.0.0.1:{port}"

[advanced]
deadline_seconds = 0.5
nvml_stale_after_seconds = 4
"""
_HEARTBEATS = (
    *("--heartbeat-interval-seconds", "0.5", "--warmup-heartbeat-interval-seconds", "0.1"),
    *("--heartbeat-timeout-seconds", "4", "--max-cpu-percent", "100", "--max-memory-percent", "100"),
)

CHECKED = "checked"
"""A file by which the machine's own check passes."""

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Machine:
    """An agent and what it reads."""

    name: str
    port: int
    agent: Agent
    fake: FakeNvml | None = None
    """The driver of NVIDIA's GPUs; None for AMD's."""
    tree: Path | None = None
    """AMD's sysfs."""
    config: Path | None = None

    node_id: str = ""
    """What the registry calls it."""

    @property
    def vendor(self) -> str:
        """Whose GPUs it reads."""
        return "AMD" if self.fake is None else "NVIDIA"

    @property
    def instance(self) -> str:
        """What Prometheus calls it."""
        return f"127.0.0.1:{self.port}"


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

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        rules = folder / "alerts.yml"
        rules.write_text(alert_rules.text(shorter=SHORTER), encoding="utf-8")
        document = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
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


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """A fault, the alert that it must lead to, and when it began, in monotonic seconds."""

    fault: str
    alert: Alert
    at: float


class Monitored:
    """The whole fleet."""

    def __init__(self, registry: Registry, machines: Mapping[str, Machine], prometheus: Prometheus) -> None:
        self.registry, self.machines, self.prometheus = registry, machines, prometheus
        self.injected: list[Injected] = []
        self.seen: dict[Injected, float] = {}
        """When each fault's alert fired first, in monotonic seconds."""
        self.others: set[str] = set()
        """Alerts that fired for no fault that was injected."""

    def inject(self, fault: str, alert: Alert, lay: Callable[[], object]) -> None:
        """Lay a fault from which an alert must follow."""
        lay()
        self.injected.append(Injected(fault, alert, time.monotonic()))

    def watch(self, *faults: str, within_seconds: float) -> None:
        """Look until the alerts of these faults have fired, by default of all; fails where one is silent."""
        awaited = [one for one in self.injected if not faults or one.fault in faults]

        def all_fired() -> bool:
            now, firing = time.monotonic(), self.prometheus.alerts()
            for one in self.injected:
                if one not in self.seen and any(one.alert.matches(labels) for labels in firing):
                    self.seen[one] = now
            expected = [one.alert for one in self.injected]
            self.others |= {
                labels["alertname"] for labels in firing if not any(one.matches(labels) for one in expected)
            }
            return all(one in self.seen for one in awaited)

        missing = "an alert for each fault"
        try:
            eventually(lambda: all_fired() or None, within_seconds=within_seconds, what=missing)
        except AssertionError as late:
            silent = [f"{one.fault}: {one.alert}" for one in awaited if one not in self.seen]
            raise AssertionError(f"no alert for {silent}; firing: {self.prometheus.alerts()}") from late

    def rows(self) -> Iterator[tuple[str, str, float, float]]:
        """Each fault, its alert, the seconds until it fired, and until it fires by the delivered rules."""
        rules = {rule.name: rule for group in alert_rules.GROUPS for rule in group.rules}
        for one in sorted(self.seen, key=lambda injected: injected.at):
            seconds, rule = self.seen[one] - one.at, rules[one.alert.name]
            yield one.fault, rule.name, seconds, seconds + alert_rules.added_seconds(rule, shorter=SHORTER)


@contextmanager
def monitored(folder: Path, *, store: Path) -> Iterator[Monitored]:
    """Run the fleet, with the registry's database in `store`, until all nodes are ready and scraped."""
    with ExitStack() as running:
        registry = running.enter_context(
            Registry(
                *("--store", f"sqlite://{store}/registry.db", "--claim-ttl-seconds", "600", *_HEARTBEATS),
                environment={
                    "GPU_REGISTRY_CLAIM_IDLE_SECONDS": "2",
                    "GPU_REGISTRY_NOTIFY": json.dumps([DEAD_RECEIVER]),
                },
            )
        )
        machines: dict[str, Machine] = {}
        for name in ("xid", "hang", "killed", "amd"):
            machine = _machine(name, folder / name, registry)
            running.enter_context(machine.agent)
            machines[name] = machine
        registry.await_ready(len(machines), within_seconds=60)
        machines = {
            name: replace(one, node_id=one.agent.await_event("node_registered", within_seconds=30)["node_id"])
            for name, one in machines.items()
        }
        targets = {
            "gpu-registry": [registry.api.removeprefix("http://")],
            "gpu-agent": [one.instance for one in machines.values()],
        }
        prometheus = Prometheus(folder, targets)
        running.callback(prometheus.end)
        eventually(
            lambda: len(prometheus.series("up == 1")) == len(machines) + 1,
            within_seconds=30,
            what="scrapes of all",
        )
        eventually(
            lambda: len(prometheus.series("gpu_agent_connected == 1")) == len(machines),
            within_seconds=30,
            what="scrapes of connected agents",
        )
        eventually(lambda: prometheus.alerts() == [], within_seconds=10, what="no alert, as nothing is wrong")
        yield Monitored(registry, machines, prometheus)


def _machine(name: str, folder: Path, registry: Registry) -> Machine:
    folder.mkdir()
    port, config = free_port(), folder / "agent.toml"
    written = _CONFIGURATION.format(port=port)
    fake = tree = None
    environment: Mapping[str, str] = {}
    if name == "amd":
        tree = unpack(AMD_MACHINE, folder / "sys")
        written += f'sys_dir = "{tree}"\ncollectors = ["amd"]\n'
    else:
        fake = FakeNvml(folder, gpus=GPUS)
        for index in range(GPUS):  # a UUID is unique in a fleet
            fake.set("uuid", index, f"GPU-{name.encode().hex()[:8]:0<8}-fa4e-4000-8000-00000000000{index}")
            fake.set("utilization", index, 0)
        environment = fake.environment()
        (folder / CHECKED).touch()
        written += f'\n[checks]\nhook = ["test", "-e", "{folder / CHECKED}"]\n'
    config.write_text(written, encoding="utf-8")
    agent = Agent(
        registry.node_url,
        folder / "state",
        *("--config", str(config)),
        simulate=None,
        environment=environment,
    )
    return Machine(name, port, agent, fake, tree, config)


def in_background(request: Callable[[], object]) -> None:
    """Make a request that may wait for long; its answer counts for nothing."""

    def run() -> None:
        try:
            request()
        except OSError:
            return  # the registry ended first

    threading.Thread(target=run, daemon=True).start()
