import pytest

from gpu_agent.probe.products import SimulationError
from gpu_agent.probe.simulated_once import read_once
from gpu_agent.wire.inventory import Outcome


def test_what_holds_from_the_beginning_is_seen_and_what_comes_later_is_not() -> None:
    report = read_once("3xL4:xid79#1:degraded#2:lost#3@60s", seed="m", now=1e9)
    assert report.outcome is Outcome.OK
    assert [gpu.health.value for gpu in report.gpus] == ["lost", "degraded", "ok"]
    assert [each.code for each in report.gpus[0].reasons] == ["gpu_lost", "xid_79"]
    assert report.gpus[0].reasons[0].since == 1e9


def test_a_driver_that_hangs_from_the_beginning_is_broken() -> None:
    report = read_once("L4:hang", seed="m", now=0)
    assert (report.outcome, report.gpus) == (Outcome.DRIVER_BROKEN, ())
    assert "did not answer within 5 s" in (report.detail or "")


def test_a_line_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(SimulationError, match="nearest"):
        read_once("8xH1000", seed="m", now=0)
