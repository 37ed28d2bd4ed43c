"""A real Prometheus that scrapes a real registry and four agents.

Three agents read GPUs of the fake NVML library, one AMD's recorded machine.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.e2e.watched_alerts import AGENT_SETTINGS, Prometheus, WatchedAlerts, job
from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.machines import unpack
from tests.programs import Agent, Registry, eventually, free_port

GPUS = 4
"""Of each machine with NVIDIA's."""
AMD_MACHINE = "mi300x-spx"
_HEARTBEATS = (
    *("--heartbeat-interval-seconds", "0.5", "--warmup-heartbeat-interval-seconds", "0.1"),
    *("--heartbeat-timeout-seconds", "4", "--max-cpu-percent", "100", "--max-memory-percent", "100"),
)

CHECKED = "checked"
"""A file by which the machine's own check passes."""
TAKES = "takes"
"""A file without which the receiver of alarms takes nothing."""


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


class Monitored(WatchedAlerts):
    """The whole fleet."""

    def __init__(self, registry: Registry, machines: dict[str, Machine], prometheus: Prometheus) -> None:
        super().__init__(prometheus)
        self.registry, self.machines = registry, machines
        self.folder = self.store = Path()


@contextmanager
def monitored(folder: Path, *, store: Path) -> Iterator[Monitored]:
    """Run the fleet, with the registry's database in `store`, until all nodes are ready and scraped."""
    with ExitStack() as running:
        registry = running.enter_context(start_registry(folder, store))
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
        prometheus = Prometheus(
            folder,
            job("gpu-registry", registry.api.removeprefix("http://")),
            job("gpu-agent", *(one.instance for one in machines.values())),
        )
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
        fleet = Monitored(registry, machines, prometheus)
        fleet.folder, fleet.store = folder, store
        yield fleet


def start_registry(folder: Path, store: Path, *, node_port: int = 0, operator_port: int = 0) -> Registry:
    """Start the registry, on these ports where it is started again."""
    receiver = {
        "name": "pager",
        "command": ["test", "-e", str(folder / TAKES)],
        "events": ["job_assigned"],
        "group_seconds": 0,
    }
    return Registry(
        *("--store", f"sqlite://{store}/registry.db", "--claim-ttl-seconds", "600", *_HEARTBEATS),
        node_port=node_port,
        operator_port=operator_port,
        environment={
            "GPU_REGISTRY_CLAIM_IDLE_SECONDS": "2",
            "GPU_REGISTRY_NOTIFY": json.dumps([receiver]),
        },
    )


def _machine(name: str, folder: Path, registry: Registry) -> Machine:
    folder.mkdir()
    port, config = free_port(), folder / "agent.toml"
    written = AGENT_SETTINGS.format(port=port)
    fake = tree = None
    environment: Mapping[str, str] = {}
    if name == "amd":
        tree = unpack(AMD_MACHINE, folder / "sys")
        for process in (tree / "class" / "kfd" / "kfd" / "proc").iterdir():
            shutil.rmtree(process)  # it is of no claim, which is a fault that others inject
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
    agent = start_agent(config, registry, environment)
    return Machine(name, port, agent, fake, tree, config)


def start_agent(config: Path, registry: Registry, environment: Mapping[str, str]) -> Agent:
    """Start the agent of a machine, also again; `environment` finds its NVML."""
    return Agent(
        registry.node_url,
        config.parent / "state",
        *("--config", str(config)),
        simulate=None,
        environment=environment,
    )


def in_background(request: Callable[[], object]) -> None:
    """Make a request that may wait for long; its answer counts for nothing."""

    def run() -> None:
        try:
            request()
        except OSError:
            return  # the registry ended first

    threading.Thread(target=run, daemon=True).start()
