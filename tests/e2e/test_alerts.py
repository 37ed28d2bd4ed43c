"""A real Prometheus watches a real fleet: each fault leads to its alert, and every panel has data.

`python -m tests.e2e.alert_table` prints which alert fired after how long.
"""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.alert_ends import release
from tests.e2e.alert_table import disturb, end, play, registry_disk
from tests.e2e.monitored_fleet import Monitored, monitored
from tests.e2e.watched_alerts import NO_PROMETHEUS, PROMETHEUS
from tests.waiting import patience
from tools.dashboards import expressions

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS),
]
_EMPTY = {
    "registry: Certificate ends in": "the registry has no certificate",
    "registry: Who leads": "it is no instance of several",
    "registry: Links to the leader": "as above",
    "registry: Copies behind etcd": "as above",
    "registry: Takeovers and terms": "as above",
    "registry: Node connections": "as above",
    "registry: Refused connections": "authentication is off",
}
"""Panels without data in this fleet, and why; their metrics are tested where they are written."""
_FOLLOW = {"AgentNotConnected", "GpusNotUsable", "MachineCheckFails"}
"""Alerts that may fire besides: other signs of what was injected."""


def test_each_fault_leads_to_its_alert_and_every_panel_has_data(tmp_path: Path) -> None:
    with ExitStack() as running:
        disk = registry_disk(tmp_path, running)
        fleet = running.enter_context(monitored(tmp_path, store=disk or tmp_path))
        running.callback(release, fleet)
        play(fleet, disk=disk)
        disturb(fleet)
        assert fleet.others <= _FOLLOW
        assert panels_without_data(fleet) == _EMPTY.keys()
        end(fleet)


def panels_without_data(fleet: Monitored) -> set[str]:
    """The panels none of whose expressions has data over the last minutes."""
    with_data: dict[str, bool] = {}
    for panel, expr in expressions():
        asked = expr.replace("$__rate_interval", "10s").replace("$instance", ".*")
        seen = fleet.prometheus.had_data(asked, seconds=patience(120))
        with_data[panel] = with_data.get(panel, False) or seen
    return {panel for panel, seen in with_data.items() if not seen}
