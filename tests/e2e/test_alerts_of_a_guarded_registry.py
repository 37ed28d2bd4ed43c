"""A real Prometheus watches a registry with TLS and tokens: each fault leads to its alert, and ends it."""

from pathlib import Path

import pytest

from tests.e2e.guarded_registry import guarded, play
from tests.e2e.watched_alerts import NO_PROMETHEUS, PROMETHEUS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS),
    pytest.mark.timeout(400),
]


def test_each_fault_leads_to_its_alert_and_only_while_it_lasts(tmp_path: Path) -> None:
    with guarded(tmp_path) as fleet:
        play(fleet)
        # Of one node whose driver is broken, for as long as a busy machine takes for all this.
        assert fleet.others <= {"NoNodeTakesJobs", "NodesDegraded", "GpusNotUsable"}
        assert all(row.gone_after is not None for row in fleet.rows())
