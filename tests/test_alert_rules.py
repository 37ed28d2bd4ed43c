"""`examples/prometheus_alerts.yml`: Prometheus accepts it, its alerts fire, and all its metrics exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_agent.node import metrics as node_metrics
from gpu_agent.server import metrics as server_metrics

ROOT = Path(__file__).parent.parent
RULES, TESTS = ROOT / "examples" / "prometheus_alerts.yml", ROOT / "tests" / "alert_rules.yml"
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: apt-get install -y prometheus")
@pytest.mark.parametrize(
    "words", [("check", "rules", RULES), ("test", "rules", TESTS)], ids=["check", "test"]
)
def test_prometheus_accepts_the_alerts_and_each_fires_when_it_should(words: tuple[str | Path, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_in_the_alerts_is_exposed() -> None:
    exposed = {one.name for one in node_metrics.METRICS} | {
        one.full_name for one in (*server_metrics.METRICS, *server_metrics.INSTANCE_METRICS)
    }
    named = set(re.findall(r"\bgpu_(?:agent|registry)_\w+", re.sub(r'summary: ".*"', "", RULES.read_text())))
    assert named
    assert named <= exposed


def test_every_alert_about_machines_has_a_test() -> None:
    machines = RULES.read_text().split("- name: machines")[1].split("- name: registry")[0]
    alerts = re.findall(r"alert: (\w+)", machines)
    assert alerts
    assert set(alerts) == set(re.findall(r"alertname: (\w+)", TESTS.read_text()))
