"""One GPU's past: readings and their times go in by hand."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gpu_agent.probe.health.history import QUIET_SECONDS, GpuHistory
from gpu_agent.probe.health.reasons import REASONS, Clears, reason
from gpu_agent.wire.inventory import Gpu, GpuProcess, HealthReason

WALL = 1_800_000_000.0
"""Unix time at monotonic 0 in these tests."""

NO_EVENTS: Mapping[str, int] = {}


def gpu(
    *codes: str,
    events: Mapping[str, int] = NO_EVENTS,
    energy_mj: int | None = None,
    ecc: int | None = None,
    throttle: tuple[str, ...] | None = (),
    pids: tuple[int, ...] | None = (),
) -> Gpu:
    return Gpu(
        uuid="GPU-0",
        name="H100",
        reasons=tuple(reason(code) for code in codes),
        events=events,
        energy_mj=energy_mj,
        ecc_uncorrected=ecc,
        throttle_reasons=throttle,
        processes=None if pids is None else tuple(GpuProcess(pid=pid) for pid in pids),
    )


class Past:
    """A history and a hand on its clock."""

    def __init__(self) -> None:
        self.history = GpuHistory()

    def reasons(self, now: float, reading: Gpu) -> tuple[HealthReason, ...]:
        return self.history.causes(reading, now_wall=WALL + now, now_mono=now)

    def at(self, now: float, reading: Gpu) -> list[str]:
        return [each.code for each in self.reasons(now, reading)]


RESET_CODES = [code for code, entry in REASONS.items() if entry.clears is Clears.RESET]


def test_a_gpu_without_a_past_has_no_causes() -> None:
    assert Past().at(0, gpu(energy_mj=7, ecc=3)) == []


@pytest.mark.parametrize(
    "code", ["xid_13", "xid_31", "xid_43", "xid_45", "xid_63", "xid_68", "xid_154", "xid_9999"]
)
def test_an_xid_of_an_application_or_an_unknown_one_never_counts(code: str) -> None:
    assert Past().at(0, gpu(events={code: 40})) == []


@pytest.mark.parametrize("code", RESET_CODES)
def test_an_event_that_a_reset_clears_is_active_until_the_energy_count_restarts(code: str) -> None:
    past = Past()
    assert past.at(0, gpu(events={code: 1}, energy_mj=9_000)) == [code]
    assert past.at(1, gpu(energy_mj=9_500)) == [code]
    assert past.at(90_000, gpu(energy_mj=99_000)) == [code]
    assert past.at(90_001, gpu(energy_mj=12)) == [code]
    assert past.at(90_002, gpu(energy_mj=50)) == []


def test_one_lying_count_of_energy_is_no_reset() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_95": 1}, energy_mj=1_000_000, ecc=3))
    assert past.at(1, gpu(energy_mj=1, ecc=3)) == ["xid_95"]
    for now in range(2, 8):
        assert past.at(now, gpu(energy_mj=1_000_000 + now, ecc=3)) == ["xid_95"]


def test_an_energy_count_that_fell_is_a_reset_only_once_it_grows() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_95": 1}, energy_mj=1_000_000))
    for now in range(1, 5):
        assert past.at(now, gpu(energy_mj=0)) == ["xid_95"]
    assert past.at(5, gpu(energy_mj=900)) == []


def test_an_energy_count_that_fell_and_is_then_unknown_proves_no_reset() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_95": 1}, energy_mj=1_000_000))
    past.at(1, gpu(energy_mj=1))
    past.at(2, gpu(energy_mj=None))
    assert past.at(3, gpu(energy_mj=20)) == ["xid_95"]
    assert past.at(4, gpu(energy_mj=30)) == []


def test_a_small_fall_of_the_count_of_energy_is_no_reset() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_64": 1}, energy_mj=9_000))
    assert past.at(1, gpu(energy_mj=8_990)) == ["xid_64"]


def test_operators_who_clear_the_count_of_errors_have_not_reset_the_gpu() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_64": 1}, energy_mj=9_000, ecc=4))
    assert past.at(1, gpu(energy_mj=9_100, ecc=0)) == ["xid_64"]


def test_without_a_count_of_energy_a_fall_of_the_count_of_errors_is_a_reset() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_64": 1}, ecc=4))
    assert past.at(1, gpu(ecc=4)) == ["xid_64"]
    assert past.at(2, gpu(ecc=0)) == []


@pytest.mark.parametrize("gone", ["gpu_lost", "gpu_reset_required"])
def test_without_a_count_of_energy_a_return_from_being_gone_is_a_reset(gone: str) -> None:
    past = Past()
    past.at(0, gpu(events={"xid_119": 1}))
    assert past.at(1, gpu(gone, throttle=None, pids=None)) == ["xid_119"]
    assert past.at(2, gpu("gpu_inaccessible", throttle=None, pids=None)) == ["xid_119"]
    assert past.at(3, gpu()) == []


def test_a_gpu_that_answers_again_without_having_been_reset_is_not_believed() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_119": 1}, energy_mj=9_000))
    past.at(1, gpu("gpu_lost", throttle=None, pids=None))
    assert past.at(2, gpu(energy_mj=9_000)) == ["xid_119"]
    past.at(3, gpu(energy_mj=1))
    assert past.at(4, gpu(energy_mj=2)) == []


def test_a_gpu_that_fell_off_the_bus_has_returned_when_it_answers_again() -> None:
    past = Past()
    assert past.at(0, gpu("gpu_lost", events={"xid_79": 1}, energy_mj=9_000)) == ["xid_79"]
    assert past.at(1, gpu("gpu_lost", throttle=None, pids=None)) == ["xid_79"]
    assert past.at(2, gpu(energy_mj=9_000)) == []


def test_a_gpu_that_fell_off_the_bus_and_still_answers_is_not_believed() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_79": 1}, energy_mj=9_000))
    assert past.at(1, gpu(energy_mj=9_001)) == ["xid_79"]


def test_an_event_that_comes_with_the_reset_itself_stays_active() -> None:
    past = Past()
    past.at(0, gpu(energy_mj=9_000))
    assert past.at(1, gpu(events={"xid_48": 1}, energy_mj=2)) == ["xid_48"]
    assert past.at(2, gpu(energy_mj=3)) == ["xid_48"]


@pytest.mark.parametrize("code", ["xid_94", "ecc_uncorrected"])
def test_an_event_that_hit_programs_ends_when_all_of_them_are_gone(code: str) -> None:
    past = Past()
    assert past.at(0, gpu(events={code: 1}, pids=(7, 8))) == [code]
    assert past.at(1, gpu(pids=(8, 9))) == [code]
    assert past.at(2, gpu(pids=(9,))) == []


@pytest.mark.parametrize("pids", [None, ()])
def test_an_event_that_hit_unknown_programs_ends_by_time(pids: tuple[int, ...] | None) -> None:
    past = Past()
    past.at(0, gpu(events={"xid_94": 1}, pids=pids))
    assert past.at(QUIET_SECONDS - 1, gpu(pids=(9,))) == ["xid_94"]
    assert past.at(QUIET_SECONDS, gpu(pids=(9,))) == []


def test_programs_that_run_on_keep_an_event_for_so_long_only() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_94": 1}, pids=(7,)))
    assert past.at(QUIET_SECONDS - 1, gpu(pids=(7,))) == ["xid_94"]
    assert past.at(QUIET_SECONDS, gpu(pids=(7,))) == []


def test_unknown_processes_end_no_event() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_94": 1}, pids=(7,)))
    assert past.at(1, gpu("gpu_lost", pids=None, throttle=None)) == ["xid_94"]


def test_an_event_that_hit_no_program_ends_when_quiet_since_its_last_time() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_92": 1}, pids=(7,)))
    assert past.at(500, gpu(events={"xid_92": 2})) == ["xid_92"]
    assert past.at(QUIET_SECONDS + 499, gpu()) == ["xid_92"]
    assert past.at(QUIET_SECONDS + 500, gpu()) == []


def test_an_event_that_came_often_has_its_count() -> None:
    past = Past()
    past.at(0, gpu(events={"xid_94": 2}))
    (cause,) = past.reasons(1, gpu(events={"xid_94": 3}))
    assert "(5 times)" in cause.detail


def test_errors_that_grow_count_and_errors_of_before_do_not() -> None:
    past = Past()
    assert past.at(0, gpu(ecc=12)) == []
    assert past.at(1, gpu(ecc=12)) == []
    assert past.at(2, gpu(ecc=None)) == []
    (cause,) = past.reasons(3, gpu(ecc=15))
    assert cause.code == "ecc_uncorrected"
    assert "(3 times)" in cause.detail
    assert past.at(4, gpu(ecc=15)) == ["ecc_uncorrected"]
    assert past.at(3 + QUIET_SECONDS, gpu(ecc=15)) == []


def test_errors_after_a_reset_are_counted_from_there() -> None:
    past = Past()
    past.at(0, gpu(ecc=12, energy_mj=5_000))
    assert past.at(1, gpu(ecc=0, energy_mj=3)) == []
    assert past.at(2, gpu(ecc=1, energy_mj=9)) == ["ecc_uncorrected"]


@pytest.mark.parametrize("errors", [2, 12, 15])
def test_errors_that_came_since_a_reset_are_new_however_many_there_were_before(errors: int) -> None:
    past = Past()
    past.at(0, gpu(ecc=12, energy_mj=5_000))
    assert past.at(1, gpu(ecc=errors, energy_mj=3)) == []
    (cause,) = past.reasons(2, gpu(ecc=errors, energy_mj=4))
    assert f"({errors} times)" in cause.detail


def test_errors_that_came_after_their_count_was_cleared_are_new() -> None:
    past = Past()
    past.at(0, gpu(ecc=12, energy_mj=5_000))
    (cause,) = past.reasons(1, gpu(ecc=2, energy_mj=5_001))
    assert "(2 times)" in cause.detail


@pytest.mark.parametrize(
    ("sign", "code"),
    [
        ("hw_thermal_slowdown", "hw_thermal_slowdown"),
        ("sw_thermal_slowdown", "sw_thermal_slowdown"),
        ("hw_power_brake_slowdown", "power_brake_slowdown"),
    ],
)
def test_slowness_counts_once_it_is_held_over_a_minute_and_since_it_began(sign: str, code: str) -> None:
    past = Past()
    for now in range(0, 61, 5):
        assert past.at(now, gpu(throttle=(sign, "hw_slowdown"))) == []
    (cause,) = past.reasons(65, gpu(throttle=(sign,)))
    assert (cause.code, cause.since) == (code, WALL)
    assert past.at(70, gpu()) == []


def test_slowness_that_comes_and_goes_never_counts() -> None:
    past = Past()
    for now in range(0, 600, 10):
        throttle = ("sw_thermal_slowdown",) if now % 60 else ()
        assert past.at(now, gpu(throttle=throttle)) == []


@pytest.mark.parametrize("sign", ["sw_power_cap", "sync_boost", "display_clock_setting"])
def test_slowness_for_another_reason_is_no_illness(sign: str) -> None:
    past = Past()
    for now in range(0, 600, 10):
        assert past.at(now, gpu(throttle=(sign,))) == []


def test_two_readings_with_nothing_in_between_do_not_make_a_minute() -> None:
    past = Past()
    past.at(0, gpu(throttle=("hw_thermal_slowdown",)))
    assert past.at(61, gpu(throttle=("hw_thermal_slowdown",))) == []


def test_unknown_throttle_reasons_neither_start_nor_end_a_slowdown() -> None:
    past = Past()
    for now in range(0, 66, 5):
        past.at(now, gpu(throttle=("hw_thermal_slowdown",)))
    assert past.at(70, gpu(throttle=None)) == ["hw_thermal_slowdown"]


def test_a_slowdown_of_the_hardware_without_a_cause_is_one_by_itself() -> None:
    past = Past()
    past.at(0, gpu(throttle=("hw_slowdown",)))
    past.at(60, gpu(throttle=("hw_slowdown",)))
    assert past.at(61, gpu(throttle=("hw_slowdown",))) == ["hw_slowdown"]
    assert past.at(62, gpu()) == []


def test_a_slowdown_of_the_hardware_whose_cause_lasts_says_the_cause_alone() -> None:
    past = Past()
    both = ("hw_slowdown", "hw_thermal_slowdown")
    for now in (0, 60):
        past.at(now, gpu(throttle=both))
    assert past.at(61, gpu(throttle=both)) == ["hw_thermal_slowdown"]


def test_a_slowdown_whose_causes_change_within_a_minute_is_one_of_the_hardware() -> None:
    past = Past()
    heat, brake = ("hw_slowdown", "hw_thermal_slowdown"), ("hw_slowdown", "hw_power_brake_slowdown")
    past.at(0, gpu(throttle=heat))
    past.at(40, gpu(throttle=brake))
    assert past.at(80, gpu(throttle=heat)) == ["hw_slowdown"]


# Links.


def linked(
    *,
    up: int | None = 18,
    down: int | None = 0,
    errors: int | None = 0,
    faults: tuple[str, ...] | None = None,
) -> Gpu:
    return replace(gpu(), nvlinks_up=up, nvlinks_down=down, nvlink_errors=errors, fabric_faults=faults)


def test_links_that_were_up_and_are_down_are_a_cause_until_they_are_up_again() -> None:
    past = Past()
    assert past.at(0, linked(up=4, down=8)) == []
    (cause,) = past.reasons(1, linked(up=2, down=10))
    assert (cause.code, cause.detail[-3:]) == ("nvlink_down", ": 2")
    assert past.at(2, linked(up=None, down=None)) == ["nvlink_down"]
    assert past.at(3, linked(up=4, down=8)) == []


def test_on_a_machine_with_nvswitches_every_link_that_is_down_is_a_cause_from_the_start() -> None:
    assert Past().at(0, linked(up=17, down=1, faults=())) == ["nvlink_down"]
    assert Past().at(0, linked(up=0, down=18, faults=("fabric_incomplete",))) == []


def test_links_that_are_off_because_mig_is_on_are_no_cause() -> None:
    past = Past()
    past.at(0, linked(up=18, down=0, faults=()))
    in_mig_mode = replace(linked(up=0, down=18, faults=()), mig_enabled=True)
    assert past.at(1, in_mig_mode) == []
    assert past.at(2, linked(up=0, down=18, faults=())) == ["nvlink_down"]
    assert past.at(3, in_mig_mode) == []


def test_link_errors_that_grow_are_a_cause_until_they_are_quiet() -> None:
    past = Past()
    assert past.at(0, linked(errors=5)) == []
    assert past.at(1, linked(errors=6)) == ["nvlink_errors"]
    assert past.at(QUIET_SECONDS, linked(errors=6)) == ["nvlink_errors"]
    assert past.at(QUIET_SECONDS + 1, linked(errors=6)) == []
    assert past.at(QUIET_SECONDS + 2, linked(errors=1)) == [], "it restarted, as at a reset"
    assert past.at(QUIET_SECONDS + 3, linked(errors=2)) == ["nvlink_errors"]


def on_pcie(
    *, use: float | None = 90.0, width: int | None = 16, generation: int | None = 5, most: int | None = 5
) -> Gpu:
    return replace(
        gpu(),
        utilization_percent=use,
        pcie_width=width,
        pcie_width_max=16,
        pcie_generation=generation,
        pcie_generation_max=most,
    )


@pytest.mark.parametrize("slow", [on_pcie(width=8), on_pcie(generation=3)], ids=["narrow", "slow"])
def test_a_pcie_link_below_what_card_and_slot_allow_is_a_cause_once_it_lasts_under_load(slow: Gpu) -> None:
    past = Past()
    assert past.at(0, slow) == past.at(60, slow) == []
    assert past.at(61, slow) == ["pcie_link_slow"]
    assert past.at(62, on_pcie(use=3, generation=1)) == ["pcie_link_slow"], (
        "a link that sleeps clears nothing"
    )
    assert past.at(63, on_pcie()) == []


@pytest.mark.parametrize(
    "idle",
    [on_pcie(use=49.9, generation=1), on_pcie(use=None, width=1), on_pcie(most=None, width=None)],
    ids=["idle", "use unknown", "limits unknown"],
)
def test_a_pcie_link_without_load_or_limits_is_not_judged(idle: Gpu) -> None:
    past = Past()
    assert [past.at(now, idle) for now in range(0, 300, 10)] == [[]] * 30


def test_a_load_that_comes_and_goes_counts_no_time_between() -> None:
    past = Past()
    past.at(0, on_pcie(width=8))
    for now in range(10, 200, 10):
        past.at(now, on_pcie(use=0, width=8))
    assert past.at(200, on_pcie(width=8)) == []


def test_a_pcie_link_is_judged_again_from_the_start_after_a_reset() -> None:
    past = Past()
    for now in (0, 60):
        past.at(now, replace(on_pcie(width=8), energy_mj=9_000 + now))
    assert past.at(61, replace(on_pcie(width=8), energy_mj=9_061)) == ["pcie_link_slow"]
    past.at(62, replace(on_pcie(use=0), energy_mj=1))
    assert past.at(63, replace(on_pcie(use=0), energy_mj=2)) == []
