from collections.abc import Mapping

import pytest

from gpu_agent.node.health_log import AGAIN_SECONDS, HealthLog
from gpu_agent.probe.reasons import health_from, reason
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

NO_EVENTS: Mapping[str, int] = {}


def gpu(
    *codes: str, index: int = 0, events: Mapping[str, int] = NO_EVENTS, unheard: str | None = None
) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=f"GPU-{index}",
        name="H100",
        index=index,
        health=health_from(reasons),
        reasons=reasons,
        events=events,
        unknowns={} if unheard is None else {"events": unheard},
    )


class Logging:
    """A log of health, and what it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "gpu_agent")
        self._caplog = caplog
        self._log = HealthLog()

    def note(self, now: float, *gpus: Gpu, heard: bool = True) -> list[dict[str, object]]:
        self._caplog.clear()
        self._log.note(GpuReport(outcome=Outcome.OK, gpus=gpus), heard=heard, now=now)
        return [
            {
                "event": record.message,
                "level": record.levelname,
                **{str(name): value for name, value in vars(record)["fields"].items()},
            }
            for record in self._caplog.records
        ]


@pytest.fixture
def logging(caplog: pytest.LogCaptureFixture) -> Logging:
    return Logging(caplog)


def test_gpus_that_are_well_are_nothing_to_tell(logging: Logging) -> None:
    assert logging.note(0, gpu(), gpu(index=1)) == []


def test_a_change_is_told_once_with_from_to_and_why(logging: Logging) -> None:
    logging.note(0, gpu(), gpu(index=1))
    (told,) = logging.note(5, gpu(), gpu("xid_79", "gpu_lost", index=1))
    assert (told["event"], told["level"]) == ("gpu_health_changed", "WARNING")
    assert (told["uuid"], told["from"], told["to"]) == ("GPU-1", "ok", "lost")
    assert told["reasons"] == ["xid_79", "gpu_lost"]
    assert "fallen off the bus" in str(told["detail"])
    assert "reboot" in str(told["action"])
    assert logging.note(10, gpu(), gpu("xid_79", index=1)) == []


def test_a_recovery_is_told_at_info(logging: Logging) -> None:
    logging.note(0, gpu("xid_79"))
    (told,) = logging.note(5, gpu())
    assert (told["level"], told["from"], told["to"], told["reasons"]) == ("INFO", "lost", "ok", [])


def test_a_gpu_that_was_ill_from_the_start_is_told(logging: Logging) -> None:
    (told,) = logging.note(0, gpu("row_remap_failed"))
    assert (told["from"], told["to"]) == (None, "degraded")


def test_an_event_is_told_with_its_meaning_and_whether_it_counts(logging: Logging) -> None:
    told = logging.note(0, gpu(events={"xid_31": 3, "xid_9999": 1}), gpu(index=1))
    assert [(line["event"], line["code"], line["count"], line["counts"]) for line in told] == [
        ("gpu_event", "xid_31", 3, False),
        ("gpu_event", "xid_9999", 1, False),
    ]
    assert "catalogue" in str(told[1]["meaning"])


def test_a_storm_of_events_is_a_line_a_minute_that_says_how_many(logging: Logging) -> None:
    lines = [
        line
        for second in range(0, 121, 5)
        for line in logging.note(second, gpu(events={"xid_31": 10}), gpu(index=1, events={"xid_31": 1}))
    ]
    assert [line["count"] for line in lines if line["uuid"] == "GPU-0"] == [10, 120, 120]
    assert [line["count"] for line in lines if line["uuid"] == "GPU-1"] == [1, 12, 12]
    assert AGAIN_SECONDS == 60


def test_a_reading_that_only_still_stands_tells_its_events_no_second_time(logging: Logging) -> None:
    assert len(logging.note(0, gpu(events={"xid_31": 1}))) == 1
    assert logging.note(100, gpu(events={"xid_31": 1}), heard=False) == []


def test_what_came_last_of_a_storm_is_told_though_nothing_more_comes(logging: Logging) -> None:
    assert [line["count"] for line in logging.note(0, gpu(events={"xid_31": 1}))] == [1]
    assert logging.note(5, gpu(events={"xid_31": 7})) == []
    assert [line["count"] for line in logging.note(60, gpu())] == [7]
    assert logging.note(120, gpu()) == []
    assert [line["count"] for line in logging.note(125, gpu(events={"xid_31": 1}))] == [1]


def test_a_driver_that_tells_of_no_events_is_told_of_once_for_each_gpu(logging: Logging) -> None:
    told = logging.note(0, gpu(unheard="too old"), gpu(index=1, unheard="too old"), gpu(index=2))
    assert [(line["event"], line["index"], line["reason"]) for line in told] == [
        ("gpu_events_unheard", 0, "too old"),
        ("gpu_events_unheard", 1, "too old"),
    ]
    assert logging.note(5, gpu(unheard="too old"), gpu(index=1, unheard="too old"), gpu(index=2)) == []
