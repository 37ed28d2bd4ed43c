"""Events that came before an answer, held for the reading that lists their GPU."""

import json

import pytest

from gpu_agent.probe.nvml.client import PendingEvents
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome


def send(pending: PendingEvents, **events: dict[str, int]) -> None:
    pending.add(json.dumps({"events": events}).encode())


def report(*uuids: str, outcome: Outcome = Outcome.OK) -> GpuReport:
    """A reading of these GPUs, each at its index."""
    gpus = tuple(Gpu(uuid=uuid, name="H100", index=index) for index, uuid in enumerate(uuids))
    return GpuReport(outcome=outcome, gpus=gpus)


def events(pending: PendingEvents, reading: GpuReport) -> list[dict[str, int]]:
    return [dict(gpu.events) for gpu in pending.merge_into(reading).gpus]


def test_pending_events_are_in_the_next_reading_and_in_no_other() -> None:
    pending = PendingEvents()
    send(pending, a={"xid_95": 1})
    send(pending, a={"xid_95": 2, "xid_31": 1}, b={"xid_48": 1})
    assert events(pending, report("a", "b", "c")) == [{"xid_95": 3, "xid_31": 1}, {"xid_48": 1}, {}]
    assert events(pending, report("a", "b", "c")) == [{}, {}, {}]


def test_a_broken_driver_takes_no_pending_events() -> None:
    pending = PendingEvents()
    send(pending, a={"xid_95": 1})
    assert events(pending, report(outcome=Outcome.DRIVER_BROKEN)) == []
    assert events(pending, report("a")) == [{"xid_95": 1}]


def test_pending_events_of_an_unidentified_gpu_are_found_by_its_index() -> None:
    pending = PendingEvents()
    pending.merge_into(report("a", "b"))
    send(pending, b={"xid_79": 1})
    assert events(pending, report("a", "unidentified-1")) == [{}, {"xid_79": 1}]
    assert events(pending, report("a", "b")) == [{}, {}]


def test_pending_events_that_a_return_clears_are_dropped_and_the_rest_is_reported() -> None:
    pending = PendingEvents()
    pending.merge_into(report("a", "b"))
    send(pending, b={"xid_79": 1, "xid_95": 1, "xid_31": 1})
    assert events(pending, report("a")) == [{}]
    assert events(pending, report("a", "b")) == [{}, {"xid_95": 1, "xid_31": 1}]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"chatter",
        b"[1]",
        b"{}",
        b'{"events": 3}',
        b'{"events": {"a": 3}}',
        b'{"events": {"a": {"xid_95": "x"}}}',
    ],
)
def test_a_line_without_events_is_ignored(line: bytes) -> None:
    pending = PendingEvents()
    pending.add(line)
    assert events(pending, report("a")) == [{}]


def test_a_quarantined_gpu_is_remembered() -> None:
    pending = PendingEvents()
    assert pending.quarantined == {}
    identity = {"uuid": "b", "index": 1, "why": "xid_119"}
    pending.add(json.dumps({"events": {"b": {"xid_119": 1}}, "quarantined": {"b": identity}}).encode())
    assert events(pending, report("a", "b")) == [{}, {"xid_119": 1}]
    pending.merge_into(report("a", "b"))
    assert pending.quarantined == {"b": identity}
