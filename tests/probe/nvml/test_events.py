"""Events of the driver, read by the child from the fake library."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.events import MOST_AT_ONCE, RETRY_AFTER_READINGS
from gpu_agent.probe.nvml.readings import TIMEOUT_SECONDS, TOO_SLOW
from tests.nvml_fake.child import ChildUnderTest, child_of
from tests.nvml_fake.control import FakeNvml, built_library
from tests.probe.nvml.event_readings import events_of, read_with_events


def open_files(child: ChildUnderTest) -> int:
    return len(list(Path(f"/proc/{child.process.pid}/fd").iterdir()))


def test_an_event_is_reported_once_for_its_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        assert events_of(child) == [{}, {}, {}]
        fake.happen(("xid", 1, 79))
        assert events_of(child) == [{}, {"xid_79": 1}, {}]
        assert events_of(child) == [{}, {}, {}]


def test_the_same_event_again_and_others_beside_it_are_all_counted(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 0, 31), ("xid", 0, 31), ("xid", 0, 94), ("double_bit_error", 0, 1))
        assert events_of(child) == [{"xid_31": 2, "xid_94": 1, "ecc_uncorrected": 1}]
        fake.happen(("xid", 0, 31))
        assert events_of(child) == [{"xid_31": 1}]


def test_a_gpu_that_is_identified_later_gives_each_event_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetUUID", 0, "TIMEOUT")
    with child_of(fake.environment()) as child:
        assert events_of(child) == [{}]
        fake.unset("error")
        assert events_of(child) == [{}]
        fake.happen(("xid", 0, 48))
        assert events_of(child) == [{"xid_48": 1}]
        assert events_of(child, reopen=True) == [{}]


def test_events_before_the_registration_are_not_reported(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.happen(("xid", 0, 79))
    with child_of(fake.environment()) as child:
        assert events_of(child) == [{}]


def test_a_reading_that_does_not_listen_opens_no_event_set(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        child.read()
    assert not [call for call in fake.calls() if "Event" in call and "Clocks" not in call]


def test_a_gpu_is_registered_once_and_only_for_events_that_it_supports(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("supported_events", 1, 8)  # Xids, and no double-bit errors
    with child_of(fake.environment()) as child:
        for _ in range(3):
            events_of(child)
        fake.happen(("double_bit_error", 0, 1), ("double_bit_error", 1, 1), ("xid", 1, 48))
        assert events_of(child) == [{"ecc_uncorrected": 1}, {"xid_48": 1}]
    assert fake.calls().count("nvmlDeviceRegisterEvents 0") == 1
    assert fake.calls().count("nvmlDeviceRegisterEvents 1") == 1


def test_a_storm_is_taken_in_parts(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(*[("xid", 0, 31)] * (MOST_AT_ONCE + 10))
        assert events_of(child) == [{"xid_31": MOST_AT_ONCE}]
        assert events_of(child) == [{"xid_31": 10}]


@pytest.mark.parametrize(
    ("call", "code", "why"),
    [
        ("nvmlEventSetCreate", "NOT_SUPPORTED", "not supported"),
        ("nvmlDeviceGetSupportedEventTypes", "NOT_SUPPORTED", "not supported"),
        ("nvmlDeviceRegisterEvents", "NOT_SUPPORTED", "not supported"),
        ("nvmlDeviceRegisterEvents", "UNKNOWN", "Unknown Error"),
        ("nvmlDeviceRegisterEvents", "NO_PERMISSION", "may not read it"),
        ("nvmlEventSetWait_v2", "UNKNOWN", "Unknown Error"),
        ("nvmlEventSetWait_v2", "INVALID_ARGUMENT", "Invalid Argument"),
    ],
)
def test_a_driver_without_events_gives_the_reason_and_all_else_is_read(
    tmp_path: Path, call: str, code: str, why: str
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("error", call, "*", code)
    with child_of(fake.environment()) as child:
        first = read_with_events(child)
        opened = open_files(child)
        again = [read_with_events(child) for _ in range(5)][-1]
        assert open_files(child) == opened
    for gpu in (*first, *again):
        assert why in gpu["unknowns"].pop("events")
        assert (gpu["reasons"], gpu["unknowns"]) == ([], {})
        assert gpu["temperature_c"]
    assert fake.calls().count("nvmlEventSetFree") == fake.calls().count("nvmlEventSetCreate") * (
        call != "nvmlEventSetCreate"
    )


def test_events_that_failed_once_are_tried_again_after_some_readings(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.set("error", "nvmlEventSetWait_v2", 0, "UNKNOWN")
        assert "Unknown Error" in read_with_events(child)[0]["unknowns"]["events"]
        for _ in range(RETRY_AFTER_READINGS):
            assert "events" in read_with_events(child)[0]["unknowns"]
        fake.unset("error")
        later = [read_with_events(child)[0] for _ in range(RETRY_AFTER_READINGS)]
        assert "events" not in later[-1]["unknowns"]
        fake.happen(("xid", 0, 79))
        assert events_of(child) == [{"xid_79": 1}, {}]


def test_one_gpu_without_events_does_not_affect_the_others(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("supported_events", 0, 0)
    with child_of(fake.environment()) as child:
        assert "events" in read_with_events(child)[0]["unknowns"]
        fake.happen(("xid", 0, 48), ("xid", 1, 48))
        assert events_of(child) == [{}, {"xid_48": 1}]


@pytest.mark.parametrize("missing", ["nvmlEventSetWait_v2", "nvmlEventSetFree"])
def test_a_driver_that_lacks_the_calls_is_read_without_them(tmp_path: Path, missing: str) -> None:
    fake = FakeNvml(tmp_path, library=built_library(missing))
    with child_of(fake.environment()) as child:
        (gpu,) = read_with_events(child)
        assert gpu["reasons"] == []
        assert gpu["temperature_c"]
        if missing != "nvmlEventSetFree":
            assert "too old" in gpu["unknowns"]["events"]


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"]
)
def test_a_gpu_lost_while_its_events_are_read_is_lost_and_the_others_go_on(tmp_path: Path, call: str) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        if call == "nvmlEventSetWait_v2":
            events_of(child)
        fake.set("error", call, 1, "GPU_IS_LOST")
        gpus = read_with_events(child)
        assert [[one["code"] for one in gpu["reasons"]] for gpu in gpus] == [[], ["gpu_lost"], []]
        fake.happen(("xid", 0, 31), ("xid", 2, 31))
        assert events_of(child) == [{"xid_31": 1}, {}, {"xid_31": 1}]


def test_events_before_a_loss_are_reported_with_the_loss(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.set("error", "nvmlDeviceGetTemperature", 1, "GPU_IS_LOST")
        fake.happen(("xid", 1, 79))
        lost = read_with_events(child)[1]
        calls_at_loss = len(fake.calls())
        events_of(child)
    assert lost["events"] == {"xid_79": 1}
    assert lost["reasons"][0]["code"] == "gpu_lost"
    assert fake.calls().count("nvmlEventSetFree") == 1, "its set is freed, and the other's still needed"
    assert not [call for call in fake.calls()[calls_at_loss:] if call.endswith(" 1")]


def test_an_event_during_a_reopening_of_the_library_is_not_lost(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 1, 63))
        assert events_of(child, reopen=True) == [{}, {"xid_63": 1}]
        fake.happen(("xid", 1, 64))
        assert events_of(child) == [{}, {"xid_64": 1}]


def test_an_event_taken_by_a_failed_reading_is_reported_by_the_next(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 0, 63))
        fake.set("error", "nvmlDeviceGetTemperature", 1, "DRIVER_NOT_LOADED")
        assert child.read(events=True)["outcome"] == "driver_broken"
        fake.unset("error")
        assert events_of(child) == [{"xid_63": 1}, {}]


def test_events_survive_a_change_of_the_list_of_gpus(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        events_of(child)
        fake.happen(("xid", 0, 63))
        fake.set("count", 2)
        assert events_of(child) == [{"xid_63": 1}, {}]
        fake.happen(("xid", 1, 63))
        assert events_of(child) == [{}, {"xid_63": 1}]


def test_opening_the_library_again_and_again_leaves_no_file_open(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=8)
    with child_of(fake.environment()) as child:
        events_of(child)
        opened = open_files(child)
        for _ in range(20):
            events_of(child, reopen=True)
        assert open_files(child) == opened
    assert fake.calls().count("nvmlEventSetCreate") == 8 * 21
    assert fake.calls().count("nvmlEventSetFree") == 8 * 20


def test_an_event_is_sent_before_the_gpu_is_queried(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        child.read(events=True)
        fake.happen(("xid", 0, 95), ("xid", 0, 31))
        fake.set("exit", "nvmlDeviceGetTemperature", 0, 1)
        child.send({"id": 2, "request": "read", "events": True})
        assert child.line() == {"events": {fake.fact("uuid", 0): {"xid_95": 1, "xid_31": 1}}}


@pytest.mark.parametrize("number", [119, 120])
def test_a_gpu_whose_own_processor_failed_is_not_queried_again(tmp_path: Path, number: int) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        before = read_with_events(child)
        fake.happen(("xid", 1, number))
        fake.set("hang", "nvmlDeviceGetTemperature", 1)
        first, second = read_with_events(child), read_with_events(child)
        fake.unset("hang")
    assert first[1]["reasons"] == [{"code": "gpu_silent", "detail": f"xid_{number}"}]
    assert first[1]["uuid"] == before[1]["uuid"]
    assert (first[1]["events"], second[1]["reasons"]) == ({f"xid_{number}": 1}, first[1]["reasons"])
    assert [gpu["temperature_c"] for gpu in (first[0], first[2], second[0], second[2])] == [40, 42, 40, 42]


def test_a_quarantined_gpu_is_not_queried_after_the_list_changes_or_the_library_is_opened_again(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        read_with_events(child)
        fake.happen(("xid", 1, 119))
        quarantined = read_with_events(child)[1]
        calls_before = len(fake.calls())
        fake.set("count", 2)
        shorter = read_with_events(child)[1]
        fake.set("count", 3)
        longer = read_with_events(child)[1]
        reopened = read_with_events(child, reopen=True)[1]
    assert quarantined.pop("events") == {"xid_119": 1}
    for later in (shorter, longer, reopened):
        assert {name: later[name] for name in ("uuid", "name", "reasons")} == {
            name: quarantined[name] for name in ("uuid", "name", "reasons")
        }
    assert not [call for call in fake.calls()[calls_before:] if call.endswith(" 1") and "Wait" not in call]


def test_a_gpu_quarantined_while_the_library_is_opened_again_is_not_queried(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    with child_of(fake.environment()) as child:
        read_with_events(child)
        fake.happen(("xid", 1, 120))
        fake.set("hang", "nvmlDeviceGetHandleByIndex_v2", 1)
        assert read_with_events(child, reopen=True)[1]["reasons"] == [
            {"code": "gpu_silent", "detail": "xid_120"}
        ]


def test_another_child_never_queries_a_quarantined_gpu_wherever_it_is_now(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    (tmp_path / "proc/driver/nvidia/gpus/0000:1a:00.0").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/gpus/0000:1b:00.0").mkdir()
    fake.set("hang", "*", 0)
    identity = {"uuid": "GPU-a", "pci_bus_id": "00000000:1A:00.0", "index": 1, "why": "xid_119"}
    with child_of(fake.environment(), root=tmp_path) as child:
        quarantined, other = read_with_events(child, quarantined={"GPU-a": identity})
    assert (quarantined["uuid"], quarantined["index"]) == ("GPU-a", 0)
    assert quarantined["reasons"] == [{"code": "gpu_silent", "detail": "xid_119"}]
    assert (other["reasons"], other["temperature_c"]) == ([], 41)


def test_a_gpu_whose_processor_fails_during_a_query_delays_the_others_for_that_query_only(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        read_with_events(child)
        for call in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage"):
            fake.set("delay", call, 1, round(1000 * TIMEOUT_SECONDS) + 100)
        slow = child.read(events=True)
        fake.happen(("xid", 1, 119))
        after = child.read(events=True)
    assert slow["took_ms"] < 1000 * (TIMEOUT_SECONDS + 1)
    assert slow["gpus"][1]["utilization_percent"] == 10
    assert slow["gpus"][1]["unknowns"]["temperature_c"] == TOO_SLOW
    assert [slow["gpus"][index]["temperature_c"] for index in (0, 2)] == [40, 42]
    assert after["took_ms"] < 1000
    assert [gpu["reasons"] != [] for gpu in after["gpus"]] == [False, True, False]


def test_a_gpu_that_is_slow_over_every_answer_holds_the_others_up_no_longer(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    with child_of(fake.environment()) as child:
        read_with_events(child)
        fake.set("delay", "*", 1, round(250 * TIMEOUT_SECONDS))
        slow = child.read(events=True)
    assert slow["took_ms"] < 1000 * (TIMEOUT_SECONDS + 2)
    assert slow["gpus"][1]["memory_mb"] is not None
    assert slow["gpus"][1]["unknowns"]["throttle_reasons"] == TOO_SLOW
    assert [gpu["clock_sm_mhz"] for gpu in (slow["gpus"][0], slow["gpus"][2])] == [1980, 1978]
