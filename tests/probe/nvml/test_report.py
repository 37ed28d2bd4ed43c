"""Lines from the child and the reports they become."""

import json

import pytest

from gpu_agent.probe.nvml.report import Answer, parse_answer
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Health, MemoryKind, Outcome


def report_of(**said: object) -> GpuReport:
    answer = parse_answer(json.dumps({"id": 1, "outcome": "ok", **said}).encode())
    assert isinstance(answer, Answer)
    return answer.report


def gpu_of(**said: object) -> Gpu:
    return report_of(gpus=[{"index": 0, "uuid": "GPU-a", "name": "H100", **said}]).gpus[0]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"{}\n",
        b"[1]\n",
        b'"ok"\n',
        b'{"id": "1", "outcome": "ok"}\n',
        b'{"id": 1}\n',
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_answer_is_none(line: bytes) -> None:
    assert parse_answer(line) is None


@pytest.mark.parametrize(
    "said",
    [
        {"outcome": "splendid"},
        {"gpus": [{}]},
        {"gpus": 3},
        {"gpus": [{"index": 0, "reasons": [{"code": "novel"}]}]},
        {"gpus": [{"index": 0, "recovery_action": "novel"}]},
        {"gpus": [{"index": 0, "events": 3}]},
        {"gpus": [{"index": 0, "events": {"xid_79": "often"}}]},
        {"took_ms": "long"},
    ],
)
def test_an_answer_of_another_version_is_a_broken_driver_with_the_next_step(said: dict[str, object]) -> None:
    report = report_of(**said)
    assert report.outcome is Outcome.DRIVER_BROKEN
    assert "restart the agent" in (report.detail or "")


def test_fields_that_this_version_does_not_know_are_ignored() -> None:
    assert gpu_of(**{"no field": 30}, temperature_c=40).temperature_c == 40


def test_values_become_the_inventorys() -> None:
    gpu = gpu_of(
        memory_mb=81559,
        memory_kind="dedicated",
        throttle_reasons=["sw_power_cap"],
        processes=[{"pid": 7, "memory_mb": None}],
        unknowns={"power_w": "not supported"},
    )
    assert gpu.memory_kind is MemoryKind.DEDICATED
    assert gpu.throttle_reasons == ("sw_power_cap",)
    assert gpu.processes == (GpuProcess(pid=7),)
    assert gpu.unknowns == {"power_w": "not supported"}
    assert (gpu.power_w, gpu.health) == (None, Health.OK)


@pytest.mark.parametrize("sign", ["row_remap_pending", "retired_pages_pending"])
def test_what_waits_for_a_reset_degrades_and_asks_for_it(sign: str) -> None:
    gpu = gpu_of(**{sign: True})
    assert (gpu.health, gpu.retirement_pending) == (Health.DEGRADED, True)
    assert [(each.code, each.action) for each in gpu.reasons] == [(sign, "reset GPU")]


def test_a_failed_row_remap_degrades() -> None:
    gpu = gpu_of(row_remap_pending=False, row_remap_failed=True)
    assert (gpu.health, gpu.retirement_pending) == (Health.DEGRADED, False)
    assert gpu.reasons[0].code == "row_remap_failed"


def test_retirement_is_unknown_only_when_neither_way_of_asking_works() -> None:
    cannot = {"row_remap_pending": "not supported", "row_remap_failed": "not supported"}
    one_way = gpu_of(retired_pages_pending=False, unknowns=cannot)
    assert (one_way.retirement_pending, one_way.unknowns) == (False, cannot)
    no_way = gpu_of(unknowns={**cannot, "retired_pages_pending": "not supported"})
    assert (no_way.retirement_pending, no_way.row_remap_failed) == (None, None)
    assert no_way.unknowns == dict.fromkeys(("retirement_pending", "row_remap_failed"), "not supported")


def test_a_lost_gpu_is_lost_with_the_drivers_message() -> None:
    gpu = gpu_of(reasons=[{"code": "gpu_lost", "detail": "reading power_w: GPU is lost"}])
    assert gpu.health is Health.LOST
    assert "reading power_w: GPU is lost" in gpu.reasons[0].detail


def test_an_unidentified_gpu_has_a_stand_in_uuid_by_its_index() -> None:
    report = report_of(gpus=[{"index": 4}])
    assert (report.gpus[0].uuid, report.gpus[0].name) == ("unidentified-4", "unidentified GPU 4")


def test_what_the_driver_asks_for_is_a_reason_by_itself() -> None:
    gpu = gpu_of(recovery_action="recovery_drain_and_reset")
    assert (gpu.health, gpu.recovery_action) == (Health.DEGRADED, "recovery_drain_and_reset")
    assert [each.code for each in gpu.reasons] == ["recovery_drain_and_reset"]
    nothing = gpu_of(recovery_action="none")
    assert (nothing.health, nothing.recovery_action, nothing.reasons) == (Health.OK, "none", ())


def test_events_are_passed_on_and_judge_nothing_by_themselves() -> None:
    gpu = gpu_of(events={"xid_79": 2, "xid_31": 1})
    assert (gpu.events, gpu.health) == ({"xid_79": 2, "xid_31": 1}, Health.OK)
