import pytest

from gpu_agent.node.reading_log import ReadingLog
from gpu_agent.probe.health import Missed
from gpu_agent.wire.inventory import GpuReport, Outcome

GOOD = GpuReport(outcome=Outcome.OK)
NO_DRIVER = GpuReport(outcome=Outcome.NO_DRIVER)
HUNG = Missed(reason="nvml_hung", since=0.0, detail="no answer")


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    log = ReadingLog()
    for result in (NO_DRIVER, NO_DRIVER, GOOD, GOOD, HUNG, HUNG, GOOD, GOOD):
        log.note(result)
    assert caplog.messages == ["gpus_probed", "gpus_probed", "gpu_reading_missed", "gpu_reading_recovered"]


def test_a_driver_that_hangs_is_a_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    ReadingLog().note(HUNG)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.__dict__["fields"] == {"reason": "nvml_hung", "detail": "no answer"}
