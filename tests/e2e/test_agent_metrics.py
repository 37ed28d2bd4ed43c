"""The agent's own metrics while its GPUs fail: absent rather than stale, and what is lost stays visible."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node.test_metrics import series
from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.machines import unpack
from tests.programs import Agent, Program, eventually, free_port

pytestmark = pytest.mark.e2e

CONFIGURATION = """
probe_interval_seconds = 0.3
metrics_listen = "127.0.0.1:{port}"
metrics_file = "{folder}/gpu_agent.prom"

[advanced]
deadline_seconds = 1.0
"""


class Exporter:
    """A running agent's two ways out."""

    def __init__(self, program: Program, port: int, file: Path) -> None:
        self.program, self.file = program, file
        self._url = f"http://127.0.0.1:{port}/metrics"

    def scraped(self) -> dict[str, dict[str, float]]:
        """Each metric's values by the UUID of its GPU, or by its last label."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:  # noqa: S310 - ours
            found = series(answer.read().decode())
        return {
            name: {
                labels.get("UUID", next(reversed(list(labels.values())), "")): value for labels, value in some
            }
            for name, some in found.items()
        }

    def health(self, uuid: str) -> str:
        """The health that a GPU has by the metrics; empty where it is not listed."""
        with urllib.request.urlopen(self._url, timeout=10) as answer:  # noqa: S310 - ours
            listed = series(answer.read().decode()).get("gpu_agent_gpu_health", [])
        return next((labels["health"] for labels, on in listed if labels["UUID"] == uuid and on), "")


@contextmanager
def exporter(tmp_path: Path, environment: dict[str, str], more: str = "") -> Iterator[Exporter]:
    port = free_port()
    config = tmp_path / "agent.toml"
    config.write_text(CONFIGURATION.format(port=port, folder=tmp_path) + more)
    with Agent(
        "ws://127.0.0.1:9",
        tmp_path / "state",
        "--config",
        str(config),
        simulate=None,
        environment=environment,
    ) as agent:
        agent.await_event("metrics_listening")
        yield Exporter(agent, port, tmp_path / "gpu_agent.prom")


def test_a_driver_that_hangs_makes_its_figures_absent_until_it_answers_again(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with exporter(tmp_path, fake.environment()) as of:
        eventually(
            lambda: len(of.scraped().get("DCGM_FI_DEV_GPU_TEMP", {})) == 2, within_seconds=20, what="figures"
        )
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "0")
        eventually(lambda: "DCGM_FI_DEV_GPU_TEMP" not in of.scraped(), within_seconds=20, what="no figures")
        first = of.scraped()["gpu_agent_gpu_reading_age_seconds"]["nvidia"]
        assert first > 1.3
        eventually(
            lambda: of.scraped()["gpu_agent_gpu_reading_age_seconds"]["nvidia"] > first + 1,
            within_seconds=10,
            what="an age that grows",
        )
        assert "DCGM_" not in of.file.read_text()
        fake.unset("hang", "nvmlDeviceGetUtilizationRates", "0")
        eventually(lambda: "DCGM_FI_DEV_GPU_TEMP" in of.scraped(), within_seconds=30, what="figures again")


def test_a_gpu_that_falls_off_the_bus_stays_listed_as_lost_with_its_xid(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    ill = fake.fact("uuid", 1)
    with exporter(tmp_path, fake.environment()) as of:
        eventually(lambda: of.health(ill) == "ok", within_seconds=20, what="a sound GPU")
        fake.happen(("xid", 1, 79))
        eventually(lambda: of.health(ill) == "lost", within_seconds=20, what="a lost GPU")
        found = of.scraped()
        assert found["DCGM_FI_DEV_XID_ERRORS"][ill] == 79
        assert found["DCGM_FI_DEV_XID_ERRORS"][fake.fact("uuid", 0)] == 0
        assert ill in of.file.read_text()
    assert not of.file.exists(), "no figure outlives the agent"


def test_amd_gpus_have_the_same_names(tmp_path: Path) -> None:
    tree = unpack("mi300x-spx", tmp_path / "sys")
    more = f'sys_dir = "{tree}"\ncollectors = ["amd"]\n'
    with exporter(tmp_path, {}, more) as of:
        found = eventually(
            lambda: of.scraped() if "DCGM_FI_DEV_FB_USED" in of.scraped() else None,
            within_seconds=20,
            what="figures of AMD's",
        )
        names = {name for name in found if name.startswith("DCGM_")}
        assert {"DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE"} <= names
        assert "DCGM_FI_DEV_XID_ERRORS" not in names
        assert list(found["gpu_agent_gpu_reading_age_seconds"]) == ["amd"]
