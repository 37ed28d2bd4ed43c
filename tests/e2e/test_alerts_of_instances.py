"""A real Prometheus watches three instances on three members of etcd: each fault leads to its alert."""

from pathlib import Path

import pytest

from tests.e2e.watched_alerts import NO_PROMETHEUS, PROMETHEUS
from tests.e2e.watched_instances import OFTEN, instances, play

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS),
    pytest.mark.timeout(400),
]
_FOLLOW = {"RegistryGone", "RegistryNotReady", "RegistryInstanceAlone", "NoNodeTakesJobs"}
"""Alerts that may fire besides, while an instance starts again: 2 minutes are 2 s here."""


def test_each_fault_leads_to_its_alert_and_only_while_it_lasts(tmp_path: Path) -> None:
    with instances(tmp_path) as fleet:
        play(fleet)
        assert fleet.others <= _FOLLOW
        assert [row.fault for row in fleet.rows() if row.gone_after is None] == [OFTEN]
