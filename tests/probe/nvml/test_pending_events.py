"""Events that were told before an answer, kept for the reading that lists their GPU."""

import json

import pytest

from gpu_agent.probe.nvml.client import PendingEvents
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome


def told(heard: PendingEvents, **events: dict[str, int]) -> None:
    heard.take(json.dumps({"heard": events}).encode())


def report(*uuids: str, outcome: Outcome = Outcome.OK) -> GpuReport:
    """A reading of these GPUs, each in its place."""
    gpus = tuple(Gpu(uuid=uuid, name="H100", index=index) for index, uuid in enumerate(uuids))
    return GpuReport(outcome=outcome, gpus=gpus)


def events(heard: PendingEvents, reading: GpuReport) -> list[dict[str, int]]:
    return [dict(gpu.events) for gpu in heard.lay_into(reading).gpus]


def test_what_was_told_lies_in_the_next_reading_and_in_no_other() -> None:
    heard = PendingEvents()
    told(heard, a={"xid_95": 1})
    told(heard, a={"xid_95": 2, "xid_31": 1}, b={"xid_48": 1})
    assert events(heard, report("a", "b", "c")) == [{"xid_95": 3, "xid_31": 1}, {"xid_48": 1}, {}]
    assert events(heard, report("a", "b", "c")) == [{}, {}, {}]


def test_a_driver_that_is_broken_now_takes_nothing_of_what_was_told() -> None:
    heard = PendingEvents()
    told(heard, a={"xid_95": 1})
    assert events(heard, report(outcome=Outcome.DRIVER_BROKEN)) == []
    assert events(heard, report("a")) == [{"xid_95": 1}]


def test_a_gpu_that_can_no_longer_say_who_it_is_is_told_of_by_its_place() -> None:
    heard = PendingEvents()
    heard.lay_into(report("a", "b"))
    told(heard, b={"xid_79": 1})
    assert events(heard, report("a", "unidentified-1")) == [{}, {"xid_79": 1}]
    assert events(heard, report("a", "b")) == [{}, {}]


def test_what_a_return_ends_is_not_told_of_a_gpu_that_returned_and_the_rest_is() -> None:
    heard = PendingEvents()
    heard.lay_into(report("a", "b"))
    told(heard, b={"xid_79": 1, "xid_95": 1, "xid_31": 1})
    assert events(heard, report("a")) == [{}]
    assert events(heard, report("a", "b")) == [{}, {"xid_95": 1, "xid_31": 1}]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"chatter",
        b"[1]",
        b"{}",
        b'{"heard": 3}',
        b'{"heard": {"a": 3}}',
        b'{"heard": {"a": {"xid_95": "x"}}}',
    ],
)
def test_a_line_that_tells_of_no_events_is_passed_over(line: bytes) -> None:
    heard = PendingEvents()
    heard.take(line)
    assert events(heard, report("a")) == [{}]


def test_a_gpu_that_must_not_be_asked_is_known_from_then_on() -> None:
    heard = PendingEvents()
    assert heard.silent == {}
    who = {"uuid": "b", "index": 1, "why": "xid_119"}
    heard.take(json.dumps({"heard": {"b": {"xid_119": 1}}, "silent": {"b": who}}).encode())
    assert events(heard, report("a", "b")) == [{}, {"xid_119": 1}]
    heard.lay_into(report("a", "b"))
    assert heard.silent == {"b": who}
